package peer

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Lab is what the tests of a package share: kiln, built once, and a registry that
// holds busybox:latest.
type Lab struct {
	Dir      string // removed at the end; kiln stands in it
	Kiln     string // the path of the program
	Registry *Registry
}

// Main runs a package's tests in a lab, to which setUp may add, and gives the code
// to exit with.
func Main(m *testing.M, setUp func(*Lab) error) int {
	dir, err := os.MkdirTemp("", "kiln-lab-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	l := &Lab{Dir: dir}
	err = l.open()
	if l.Registry != nil {
		defer l.Registry.Stop()
	}
	if err == nil {
		err = setUp(l)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func (l *Lab) open() (err error) {
	if l.Kiln, err = BuildKiln(l.Dir); err != nil {
		return err
	}
	if l.Registry, err = StartRegistry(filepath.Join(l.Dir, "registry")); err != nil {
		return err
	}
	busybox, err := Busybox()
	if err != nil {
		return err
	}
	return Push(busybox, l.Registry.Addr+"/busybox:latest")
}
