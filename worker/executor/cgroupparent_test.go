package executor

import (
	"os"
	"path/filepath"
	"testing"
)

// A step's cgroup is below the parent that it names, which is made, and nothing of
// the step's own is left there.
func TestCgroupParent(t *testing.T) {
	n, err := New(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	const parent = "kiln-test-parent"
	s := shell(t, "true")
	s.CgroupParent = "/" + parent
	if _, err := output(t, n, s); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob("/sys/fs/cgroup/*/" + parent)
	if err != nil {
		t.Fatal(err)
	}
	if unified, err := filepath.Glob("/sys/fs/cgroup/" + parent); err == nil {
		found = append(found, unified...)
	}
	if len(found) == 0 {
		t.Fatalf("no cgroup %s was made", parent)
	}
	for _, dir := range found {
		left, err := filepath.Glob(dir + "/*/cgroup.procs")
		if err != nil || len(left) > 0 {
			t.Errorf("left below %s: %v, %v", dir, left, err)
		}
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}
}
