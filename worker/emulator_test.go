package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func TestExplainEmulator(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"qemu-s390x":   "enabled\ninterpreter /usr/bin/qemu-s390x-static\nflags: OC\noffset 0\n",
		"qemu-riscv64": "disabled\ninterpreter /usr/bin/qemu-riscv64-static\nflags: OCF\n",
		"qemu-ppc64le": "enabled\ninterpreter /usr/bin/qemu-ppc64le-static\nflags: OCF\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	format := fmt.Errorf("executing /bin/sh: %w", unix.ENOEXEC)
	runtimeFormat := errors.New("exec container process `/bin/sh`: Exec format error")
	missing := fmt.Errorf("executing /bin/sh: %w", unix.ENOENT)
	for _, c := range []struct {
		platform string
		err      error
		want     string // in the hint; empty: the error stays as it is
	}{
		{"mips64le", format, "qemu-user-static"},        // nothing is registered
		{"mips64le", runtimeFormat, "qemu-user-static"}, // the same, by an OCI runtime
		{"mips64le", missing, ""},                       // the program is missing in the image
		{"riscv64", format, "switched off"},             // registered, not enabled
		{"s390x", missing, "without the flag F"},        // the interpreter is not in the image
		{"ppc64le", missing, ""},                        // all is well: the program is missing
		{runtime.GOARCH, format, ""},                    // the machine's own
		{"", format, ""},                                // no platform is named
	} {
		p := ocispecs.Platform{OS: "linux", Architecture: c.platform}
		got := explainEmulator(p, dir, c.err)
		var e *EmulatorError
		if c.want == "" {
			if got != c.err {
				t.Errorf("%s, %v: %v, want the error as it was", c.platform, c.err, got)
			}
			continue
		}
		if !errors.As(got, &e) || !strings.Contains(e.Hint(), c.want) || !errors.Is(got, c.err) {
			t.Errorf("%s, %v: %v, want a hint of %q", c.platform, c.err, got, c.want)
		}
	}
	if err := explainEmulator(ocispecs.Platform{OS: "linux", Architecture: "s390x"}, dir, nil); err != nil {
		t.Errorf("no error became %v", err)
	}
}
