package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
)

// open counts the descriptors of a process, but for the folders of the pool, which
// stay open: there are 256 of them.
func open(t *testing.T, pid int) int {
	t.Helper()
	list, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range list {
		if to, err := os.Readlink(fd); err == nil && !strings.Contains(to, "/root/files/") {
			n++
		}
	}
	return n
}

// TestManyAtOnce runs 60 builds over 12 clients that share a step and a folder: the
// step runs once, and nothing is left open.
func TestManyAtOnce(t *testing.T) {
	const clients, builds = 12, 5
	first, d := newClient(t)
	base := llb.Image(shared.registry.Addr + "/busybox:latest")
	step := base.Run(llb.Args([]string{"sh", "-c", "sleep 1; cat /proc/sys/kernel/random/uuid > /id"})).Root()
	src := folder(t, map[string]string{"a": "1", "b/c": "2"})
	build := func(c *client.Client, out string, own string) error {
		st := step.File(llb.Copy(llb.Local("src"), "/", "/src/")).File(llb.Mkfile("/own", 0o644, []byte(own)))
		def, err := st.Marshal(t.Context(), llb.LinuxAmd64)
		if err != nil {
			return err
		}
		tree, err := fsutil.NewFS(src)
		if err != nil {
			return err
		}
		_, err = c.Solve(t.Context(), def, client.SolveOpt{SharedKey: "shared", LocalMounts: map[string]fsutil.FS{"src": tree}, Exports: toFolder(out)}, nil)
		return err
	}
	warm := t.TempDir()
	if _, err := first.Solve(t.Context(), marshal(t, llb.Scratch().File(llb.Mkfile("/f", 0o644, nil))), client.SolveOpt{Exports: toFolder(warm)}, nil); err != nil {
		t.Fatal(err)
	}
	before := open(t, d.cmd.Process.Pid)
	out := t.TempDir()
	var group errgroup.Group
	for i := range clients {
		group.Go(func() error {
			c, err := client.New(t.Context(), d.addr())
			if err != nil {
				return err
			}
			defer c.Close()
			var own errgroup.Group
			for j := range builds {
				name := fmt.Sprintf("%d-%d", i, j)
				own.Go(func() error { return build(c, filepath.Join(out, name), name) })
			}
			return own.Wait()
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	id := read(t, filepath.Join(out, "0-0", "id"))
	for i := range clients {
		for j := range builds {
			name := fmt.Sprintf("%d-%d", i, j)
			dir := filepath.Join(out, name)
			if got := read(t, filepath.Join(dir, "id")); got != id {
				t.Errorf("build %s ran the shared step by itself", name)
			}
			if got := read(t, filepath.Join(dir, "own")) + read(t, filepath.Join(dir, "src/b/c")); got != name+"2" {
				t.Errorf("build %s holds %q", name, got)
			}
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for open(t, d.cmd.Process.Pid) > before+32 { // connections to the registry are kept for a while
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors are open, before it were %d", open(t, d.cmd.Process.Pid), before)
		}
		time.Sleep(50 * time.Millisecond)
	}
	outputs, err := filepath.Glob(filepath.Join(d.dir, "root/tmp/output-*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(outputs) > 0 {
		t.Errorf("left behind: %v", outputs)
	}
}
