package executor

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// busybox is a layer folder with a static busybox and its applets, made once for
// all tests.
var busybox string

func TestMain(m *testing.M) {
	if dir := os.Getenv("KILN_EXECUTOR_DOOMED"); dir != "" {
		busybox = os.Getenv("KILN_EXECUTOR_BUSYBOX") // whoever kills this process removes it
		runDoomed(dir)
	}
	dir, err := os.MkdirTemp("", "kiln-executor-test-")
	if err == nil {
		busybox = filepath.Join(dir, "busybox")
		err = makeBusybox(busybox)
	}
	if err != nil {
		println("making the root of the tests (Debian package busybox-static):", err.Error())
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func makeBusybox(dir string) error {
	for _, d := range []string{"bin", "tmp", "etc", "root", "var"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(dir, "tmp"), 0o1777|os.ModeSticky); err != nil {
		return err
	}
	bin, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), data, 0o755); err != nil {
		return err
	}
	files := map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n",
		"etc/group":  "root:x:0:\nann:x:1000:\nwheel:x:10:ann,bob\nvideo:x:44:bob,ann\n",
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return exec.Command(bin, "--install", "-s", filepath.Join(dir, "bin")).Run()
}

// newNative makes an executor for a test.
func newNative(t testing.TB) *Native {
	t.Helper()
	n, err := New(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// shell is a spec that runs a script on busybox with an upper folder of its own.
func shell(t testing.TB, script string) Spec {
	t.Helper()
	return onLayers(t, []string{busybox}, "/bin/busybox", "sh", "-c", script)
}

func onLayers(t testing.TB, lower []string, args ...string) Spec {
	t.Helper()
	dir := t.TempDir()
	o := Overlay{Lower: lower, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
	for _, d := range []string{o.Upper, o.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Spec{ID: strings.NewReplacer("/", "_", " ", "_").Replace(t.Name()), Root: o, Args: args, Network: NetworkNone}
}

// output runs a spec and gives what it wrote, both streams together.
func output(t testing.TB, e Executor, s Spec) (string, error) {
	t.Helper()
	var b bytes.Buffer
	s.Stdout, s.Stderr = &b, &b
	err := e.Run(context.Background(), s)
	return b.String(), err
}
