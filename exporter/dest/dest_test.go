package dest

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// entries gives the names in dir.
func entries(t *testing.T, dir string) (out []string) {
	t.Helper()
	ds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range ds {
		out = append(out, d.Name())
	}
	return out
}

func TestFileAppearsWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "out.tar")
	for _, data := range []string{"first", "second, in its place"} {
		f, err := Path{Name: path}.File(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, data); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err == nil && string(got) == data {
			t.Error("the file is there before it is whole")
		}
		if err := f.Commit(); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != data {
			t.Errorf("got %q, %v; want %q", got, err, data)
		}
	}
	f, err := Path{Name: path}.File(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f, "half of"); err != nil {
		t.Fatal(err)
	}
	if err := f.Abort(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "second, in its place" {
		t.Errorf("after Abort: %q, %v; want what was there", got, err)
	}
	if got := entries(t, filepath.Dir(path)); len(got) != 1 {
		t.Errorf("%v is left, want the output alone", got)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o666&^umask() {
		t.Errorf("mode %v, %v; want what the umask leaves", st.Mode(), err)
	}
}

func TestLinkStaysALink(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "real"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	f, err := Path{Name: filepath.Join(dir, "link")}.File(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f, "new"); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "real")); err != nil || string(got) != "new" {
		t.Errorf("behind the link: %q, %v; want the output", got, err)
	}
}

func TestPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	go func() {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		got <- string(b)
	}()
	f, err := Path{Name: path}.File(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f, "through it"); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != "through it" {
		t.Errorf("got %q", s)
	}
}

func TestStdoutAndFolders(t *testing.T) {
	var out bytes.Buffer
	f, err := Path{Name: "-", Stdout: &out}.File(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f, "x"); err != nil || f.Commit() != nil || out.String() != "x" {
		t.Errorf("standard output got %q, %v", &out, err)
	}
	if _, err := (Path{Name: "-"}).Folder(t.Context()); err == nil {
		t.Error("a folder was written to standard output")
	}
	if _, err := (Path{Name: t.TempDir()}).File(t.Context(), nil); err == nil {
		t.Error("a file was opened where a folder is")
	}
	dir := filepath.Join(t.TempDir(), "a", "b")
	d, err := Path{Name: dir}.Folder(t.Context())
	if err != nil || d.Path() != dir {
		t.Fatalf("got %v, %v", d, err)
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		t.Errorf("the folder was not made: %v", err)
	}
}

func TestUmask(t *testing.T) {
	if got := parseUmask("Name:\tx\nUmask:\t0027\n"); got != 0o027 {
		t.Errorf("got %o, want 27", got)
	}
	if got := parseUmask("Name:\tx\n"); got != 0o022 {
		t.Errorf("of an old kernel: got %o, want 22", got)
	}
}
