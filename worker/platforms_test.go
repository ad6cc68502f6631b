package worker

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
)

func TestEmulated(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const (
		arm64 = "magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
		s390x = "magic 7f454c4602020100000000000000000000020016\nmask ffffffffffffff00fffffffffffffffffffeffff\n"
		arm   = "magic 7f454c4601010100000000000000000002002800\n"
		ppc64 = "magic 7f454c4602020100000000000000000000020015\n"
		at    = "interpreter /usr/bin/x\nflags: F\noffset 0\n"
	)
	for name, text := range map[string]string{
		"qemu-aarch64": "enabled\n" + at + arm64,
		"rosetta":      "enabled\ninterpreter /mnt/rosetta\nflags: OCF\noffset 0\n" + arm64, // once more, by another name
		"qemu-s390x":   "enabled\n" + at + s390x,
		"qemu-arm":     "disabled\n" + at + arm,
		"qemu-ppc64":   "enabled\ninterpreter /usr/bin/x\nflags: OC\noffset 0\n" + ppc64, // it would have to be in the image
		"python3.12":   "enabled\ninterpreter /usr/bin/python3\nflags: F\noffset 0\nmagic cb0d0d0a\n",
		"jar":          "enabled\ninterpreter /usr/bin/jexec\nflags: F\nextension .jar\n",
		"short":        "enabled\n" + at + "magic 7f454c46\n",
		"nonsense":     "enabled\n" + at + "magic zz\n",
		"register":     "",
	} {
		write(name, text)
	}
	if got := emulated(dir); got != nil {
		t.Errorf("without a status: %q", got)
	}
	write("status", "enabled\n")
	if got, want := emulated(dir), []string{"arm64", "s390x"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	write("status", "disabled\n")
	if got := emulated(dir); got != nil {
		t.Errorf("switched off: %q", got)
	}
	if own := Platforms()[0]; own.OS != "linux" || own.Architecture != runtime.GOARCH {
		t.Errorf("the first platform is %+v", own)
	}
}
