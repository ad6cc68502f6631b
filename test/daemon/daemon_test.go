// Package daemon drives `kiln serve` by real clients: buildctl and docker buildx,
// in the scripts of testdata, and by BuildKit's own Go client.
//
// Besides testscript's own commands a script has:
//
//	serve FLAG…   starts `kiln serve` on the script's state folder; clients find it
//	stop          ends the daemon as SIGTERM does, and waits for it
//	mountless     fails where kiln left a mount behind
//	graph FILE    writes a graph, of a step on the base image
//	secretless FILE DIR…  fails where a line of the file is in a file below DIR, packed or not
//
// and in its environment $REGISTRY, a registry that all scripts share, with
// $BUSYBOX, a base image in it; $PORT, which nobody listens at, and $TLS, a folder with the
// keys and certificates of a server and a client of it (server, client) and the authority's (ca).
package daemon

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kiln-build/kiln/test/internal/leak"
	"github.com/kiln-build/kiln/test/internal/peer"
)

// shared is what all tests use; it is made before the first of them.
var shared struct {
	bin      string // the folder of the kiln binary
	peers    string // the folder of the clients
	registry *peer.Registry
}

func TestMain(m *testing.M) {
	os.Exit(peer.Main(m, func(l *peer.Lab) error {
		shared.bin, shared.registry = l.Dir, l.Registry
		cache, err := os.UserCacheDir()
		if err != nil {
			return err
		}
		shared.peers = filepath.Join(cache, "kiln-test", "peers")
		// What was built before stays; the first time takes minutes.
		if out, err := exec.Command("../peers/build.sh", shared.peers, "buildctl", "buildx").CombinedOutput(); err != nil {
			return fmt.Errorf("building the clients: %w\n%s", err, out)
		}
		return nil
	}))
}

// daemonKey is where a script keeps its daemon.
type daemonKey struct{}

func TestScripts(t *testing.T) {
	keys := newAuthority(t)
	keys.server("server")
	keys.client("client")
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(e *testscript.Env) error {
			path := []string{shared.bin, shared.peers, e.Getenv("PATH")}
			e.Setenv("PATH", strings.Join(path, string(os.PathListSeparator)))
			state, err := os.MkdirTemp(shared.bin, "state-")
			if err != nil {
				return err
			}
			d := &instance{dir: state}
			e.Setenv("TLS", keys.dir)
			e.Setenv("PORT", freePort(t))
			e.Values[daemonKey{}] = d
			e.Defer(func() {
				if err := d.stop(); err != nil {
					t.Errorf("stopping the daemon: %v", err)
				}
				os.RemoveAll(state)
			})
			e.Setenv("STATE", state)
			e.Setenv("BUILDKIT_HOST", d.addr())
			e.Setenv("REGISTRY", shared.registry.Addr)
			e.Setenv("BUSYBOX", shared.registry.Addr+"/busybox:latest")
			e.Setenv("DOCKER_CONFIG", filepath.Join(e.WorkDir, ".docker"))
			e.Setenv("BUILDX_CONFIG", filepath.Join(e.WorkDir, ".buildx"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Check(ts.Value(daemonKey{}).(*instance).start(args...))
			},
			"stop": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Check(ts.Value(daemonKey{}).(*instance).stop())
			},
			"graph": func(ts *testscript.TestScript, neg bool, args []string) {
				graph := busybox().Run(llb.Shlex("echo said by a graph")).Root()
				def, err := graph.Marshal(context.Background())
				ts.Check(err)
				var data bytes.Buffer
				ts.Check(llb.WriteTo(def, &data))
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), data.Bytes(), 0o600))
			},
			"secretless": leak.Command,
			"mountless": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Check(mountless(ts.Value(daemonKey{}).(*instance).dir))
			},
		},
	})
}

// mountless says which mounts there are below a folder.
func mountless(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], dir) {
			return fmt.Errorf("kiln left a mount behind: %s", fields[4])
		}
	}
	return nil
}
