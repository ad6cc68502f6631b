package executor

import (
	"errors"
	"io"
	"path/filepath"
	"testing"
)

// A step's cgroup is below the parent that it names, which is made where it was not
// there, and nothing of either is left.
func TestCgroupParent(t *testing.T) {
	n, err := New(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	const parent = "kiln-test-parent"
	find := func() []string {
		found, err := filepath.Glob("/sys/fs/cgroup/*/" + parent)
		unified, uerr := filepath.Glob("/sys/fs/cgroup/" + parent)
		if err := errors.Join(err, uerr); err != nil {
			t.Error(err)
		}
		return append(found, unified...)
	}
	s := shell(t, "echo started; read line")
	s.CgroupParent = "/../" + parent
	r, w := io.Pipe()
	s.Stdin = r
	var while []string
	s.Stdout = writerFunc(func(p []byte) (int, error) {
		while = find()
		w.Close()
		return len(p), nil
	})
	var exit *ExitError
	if err := n.Run(t.Context(), s); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if len(while) == 0 {
		t.Errorf("while the step ran there was no cgroup %s", parent)
	}
	if left := find(); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	if len(n.below) > 0 {
		t.Errorf("%d parents are held", len(n.below))
	}
}
