package daemon

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
)

// footprint is what a daemon holds open.
type footprint struct {
	files      int // descriptors, but for those of the pool's folders, which stay open: there are 256
	goroutines int
	temporary  int // entries in the folders for what is under way
}

// measure looks at a daemon whose profiles are served at an address.
func (d *instance) measure(t *testing.T, profiles string) footprint {
	t.Helper()
	var f footprint
	list, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range list {
		if to, err := os.Readlink(fd); err == nil && !strings.Contains(to, "/root/files/") {
			f.files++
		}
	}
	resp, err := http.Get("http://" + profiles + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(string(body), "goroutine profile: total %d", &f.goroutines); err != nil {
		t.Fatalf("reading the profile %.100q: %v", body, err)
	}
	temp, err := filepath.Glob(filepath.Join(d.dir, "root/tmp/*"))
	if err != nil {
		t.Fatal(err)
	}
	f.temporary = len(temp)
	return f
}

// held lists what a daemon holds, for people.
func (d *instance) held(t *testing.T, profiles string) string {
	t.Helper()
	var b strings.Builder
	list, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range list {
		if to, err := os.Readlink(fd); err == nil && !strings.Contains(to, "/root/files/") {
			fmt.Fprintln(&b, to)
		}
	}
	resp, err := http.Get("http://" + profiles + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(&b, resp.Body); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// settles waits until a daemon holds no more than it did before.
func (d *instance) settles(t *testing.T, profiles string, before footprint) {
	t.Helper()
	// Connections to the registry are kept for a while, 16 at most, with two
	// goroutines each; a few files more are those of steps that came first.
	const kept = 16 + 8
	deadline := time.Now().Add(20 * time.Second)
	for {
		now := d.measure(t, profiles)
		if now.files <= before.files+kept && now.goroutines <= before.goroutines+2*kept && now.temporary <= before.temporary {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the daemon holds %+v, before it was %+v\n%s", now, before, d.held(t, profiles))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// peak gives the most memory that a daemon had so far, in bytes.
func (d *instance) peak(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("there is no VmHWM")
	return 0
}

// newMeasured starts a daemon that serves its profiles.
func newMeasured(t *testing.T) (c *client.Client, d *instance, profiles string) {
	t.Helper()
	profiles = "127.0.0.1:" + freePort(t)
	config := filepath.Join(t.TempDir(), "kiln.toml")
	if err := os.WriteFile(config, []byte("[grpc]\ndebugAddress = \""+profiles+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, d = newClient(t, "--config", config)
	// What is made once, and stays: by the first step too.
	if _, err := c.Solve(t.Context(), marshal(t, llb.Image(shared.registry.Addr+"/busybox:latest").Run(llb.Args([]string{"touch", "/f"})).Root()), client.SolveOpt{Exports: toFolder(t.TempDir())}, nil); err != nil {
		t.Fatal(err)
	}
	return c, d, profiles
}

// maxMemory is what a daemon may take while many build.
const maxMemory = 1 << 30

// TestManyAtOnce runs 100 builds over 20 clients. Every second one shares a step and
// a folder with the others of its kind: the step runs once, the rest have one of
// their own; and nothing is left open.
func TestManyAtOnce(t *testing.T) {
	const clients, builds = 20, 5
	_, d, profiles := newMeasured(t)
	base := llb.Image(shared.registry.Addr + "/busybox:latest")
	src := folder(t, map[string]string{"a": "1", "b/c": "2"})
	build := func(c *client.Client, out, own, step string) error {
		st := base.Run(llb.Args([]string{"sh", "-c", "sleep 1; cat /proc/sys/kernel/random/uuid > /id; : " + step})).Root().
			File(llb.Copy(llb.Local("src"), "/", "/src/")).File(llb.Mkfile("/own", 0o644, []byte(own)))
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
	before := d.measure(t, profiles)
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
				name, step := fmt.Sprintf("%d-%d", i, j), "shared"
				if (i+j)%2 == 1 {
					step = name
				}
				own.Go(func() error { return build(c, filepath.Join(out, name), name, step) })
			}
			return own.Wait()
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	ids := map[string]int{}
	for i := range clients {
		for j := range builds {
			name := fmt.Sprintf("%d-%d", i, j)
			dir := filepath.Join(out, name)
			ids[read(t, filepath.Join(dir, "id"))]++
			if got := read(t, filepath.Join(dir, "own")) + read(t, filepath.Join(dir, "src/b/c")); got != name+"2" {
				t.Errorf("build %s holds %q", name, got)
			}
		}
	}
	const half = clients * builds / 2
	if n := ids[read(t, filepath.Join(out, "0-0", "id"))]; n != half || len(ids) != half+1 {
		t.Errorf("%d builds share the step, and there are %d runs of it; want %d and %d", n, len(ids), half, half+1)
	}
	if got := d.peak(t); got > maxMemory {
		t.Errorf("the daemon took %d MiB, want less than %d", got>>20, maxMemory>>20)
	}
	d.settles(t, profiles, before)
}
