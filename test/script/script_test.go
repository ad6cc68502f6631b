// Package script runs the scripts of testdata against the real program: each is a
// story of a user's, told in commands, with the files that it needs.
//
// Besides testscript's own commands a script has:
//
//	registry NAME     starts a registry of its own and sets $NAME to its address
//	ocirun TAR ARG…   unpacks the image of an OCI tarball and runs it by crun
//	files TAR         lists the merged files of an image: kind, mode, owner, size, path, link target
//	config TAR        prints an image's config as JSON
//	tree DIR N        makes a folder of N files of mixed sizes
//	arm64             sets $ARM64 to a folder with a busybox for arm64
//	emulated CMD…     runs a command where the kernel has an emulator of arm64
//	web NAME DIR      serves a folder by http, and its repositories below /git/, and sets $NAME to the
//	                  address; /loop, /half, /broken
//	                  and /private/ (for those who have $WEB_TOKEN) are not what they should be,
//	                  /etag/ has the files with an ETag; .NAME.requests gets a line for each request
//	secretless F DIR… fails where a line of the file F is in a file below DIR, packed or not
//	frontend NAME     builds the example of a frontend, and sets $NAME to its path
//	mountless         fails where kiln left a mount, a process or a cgroup behind
//
// and in its environment $REGISTRY, a registry that all scripts share, with
// $BUSYBOX and $DEBIAN, base images in it. $KILN_ROOT is the script's own state folder.
package script

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kiln-build/kiln/test/internal/peer"
)

// shared is what all scripts use; it is made before the first of them.
var shared struct {
	bin      string // the folder of the kiln binary
	registry *peer.Registry
}

func TestMain(m *testing.M) {
	os.Exit(peer.Main(m, func(l *peer.Lab) error {
		shared.bin, shared.registry = l.Dir, l.Registry
		return nil
	}))
}

// debian pushes the Debian base image when the first script asks for it.
var debian = sync.OnceValue(func() error {
	img, err := peer.Debian()
	if err != nil {
		return err
	}
	return peer.Push(img, shared.registry.Addr+"/debian:latest")
})

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup:               setUpScript,
		Cmds:                commands,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
	})
}

func setUpScript(e *testscript.Env) error {
	e.Setenv("PATH", shared.bin+string(os.PathListSeparator)+e.Getenv("PATH"))
	state := e.WorkDir + ".state" // beside the folder, which is the context of builds
	e.Defer(func() { os.RemoveAll(state) })
	e.Setenv("KILN_ROOT", state)
	e.Setenv("REGISTRY", shared.registry.Addr)
	e.Setenv("BUSYBOX", shared.registry.Addr+"/busybox:latest")
	e.Setenv("DEBIAN", shared.registry.Addr+"/debian:latest")
	e.Setenv("DOCKER_CONFIG", filepath.Join(e.WorkDir, ".docker"))
	return nil
}
