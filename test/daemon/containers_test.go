package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/tonistiigi/fsutil"
)

// stream collects what a process writes; it may be read meanwhile.
type stream struct {
	mu   sync.Mutex
	data bytes.Buffer
	more chan struct{}
}

func newStream() *stream { return &stream{more: make(chan struct{}, 1)} }

func (s *stream) Write(b []byte) (int, error) {
	s.mu.Lock()
	s.data.Write(b)
	s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (s *stream) Close() error { return nil }

func (s *stream) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data.String()
}

// wait waits until the text is there.
func (s *stream) wait(ctx context.Context, t *testing.T, text string) {
	t.Helper()
	for !strings.Contains(s.String(), text) {
		select {
		case <-s.more:
		case <-ctx.Done():
			t.Fatalf("%q holds no %q", s.String(), text)
		}
	}
}

// function builds by a function that fails the test where it fails.
func function(t *testing.T, c *client.Client, o client.SolveOpt, f func(ctx context.Context, g gateway.Client)) {
	t.Helper()
	_, err := c.Build(t.Context(), o, "test", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		f(ctx, g)
		return gateway.NewResult(), nil
	}, nil)
	if err != nil {
		t.Error(err)
	}
}

// solve gives the reference of a state.
func solve(ctx context.Context, t *testing.T, g gateway.Client, st llb.State) gateway.Reference {
	t.Helper()
	res, err := g.Solve(ctx, gateway.SolveRequest{Definition: marshal(t, st).ToPB()})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := res.SingleRef()
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func busybox() llb.State { return llb.Image(shared.registry.Addr + "/busybox:latest") }

// container makes a container on busybox.
func container(ctx context.Context, t *testing.T, g gateway.Client, change func(*gateway.NewContainerRequest)) gateway.Container {
	t.Helper()
	req := gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/", MountType: pb.MountType_BIND, Ref: solve(ctx, t, g, busybox())}}}
	if change != nil {
		change(&req)
	}
	ctr, err := g.NewContainer(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	return ctr
}

// run runs a script in a container to its end, and gives its output.
func run(ctx context.Context, t *testing.T, ctr gateway.Container, script string, change func(*gateway.StartRequest)) (string, error) {
	t.Helper()
	out := newStream()
	req := gateway.StartRequest{Args: []string{"sh", "-c", script}, Stdout: out, Stderr: out}
	if change != nil {
		change(&req)
	}
	p, err := ctr.Start(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	err = p.Wait()
	return out.String(), err
}

// start runs a script beside others, once it has said that it is there.
func start(ctx context.Context, t *testing.T, ctr gateway.Container, script string) gateway.ContainerProcess {
	t.Helper()
	out := newStream()
	p, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"sh", "-c", "echo up; " + script}, Stdout: out})
	if err != nil {
		t.Fatal(err)
	}
	out.wait(ctx, t, "up")
	return p
}

func exitCode(err error) int {
	var exit *gwpb.ExitError
	if errors.As(err, &exit) {
		return int(exit.ExitCode)
	}
	return -1
}

// TestContainerProcesses runs what a process can be asked for, each first in its
// container and entering one.
func TestContainerProcesses(t *testing.T) {
	c, _ := newClient(t)
	o := client.SolveOpt{Session: []session.Attachable{secretsprovider.FromMap(map[string][]byte{"token": []byte("secret")})}}
	tests := []struct {
		name   string
		script string
		change func(*gateway.StartRequest)
		want   string
		code   int
	}{
		{"output of both kinds", "echo out; echo err >&2", nil, "out\nerr\n", 0},
		{"an exit code", "exit 42", nil, "", 42},
		{"standard input", "cat", func(r *gateway.StartRequest) { r.Stdin = io.NopCloser(strings.NewReader("fed")) }, "fed", 0},
		{"environment, folder, user", "echo $A; pwd; id -u", func(r *gateway.StartRequest) {
			r.Env, r.Cwd, r.User = []string{"A=b"}, "/tmp", "1000"
		}, "b\n/tmp\n1000\n", 0},
		{"a secret in the environment", "echo $TOKEN", func(r *gateway.StartRequest) {
			r.SecretEnv = []*pb.SecretEnv{{ID: "token", Name: "TOKEN"}}
		}, "secret\n", 0},
		{"host name and hosts", "hostname; grep db /etc/hosts; ls /sys/class/net", nil, "box\n10.1.2.3\tdb\nlo\n", 0},
		{"a lot of output", "yes | head -c 3000000 | wc -c; yes | head -c 3000000", nil, "3000000\n" + strings.Repeat("y\n", 1500000), 0},
		{"a program that is not there", "", func(r *gateway.StartRequest) { r.Args = []string{"/no/such"} }, "", 255},
	}
	function(t, c, o, func(ctx context.Context, g gateway.Client) {
		settings := func(r *gateway.NewContainerRequest) {
			r.Hostname, r.NetMode, r.ExtraHosts = "box", pb.NetMode_NONE, []*pb.HostIP{{Host: "db", IP: "10.1.2.3"}}
		}
		shared := container(ctx, t, g, settings)
		start(ctx, t, shared, "sleep 100")
		for _, test := range tests {
			first := container(ctx, t, g, settings)
			for how, ctr := range map[string]gateway.Container{"first": first, "entering": shared} {
				t.Run(test.name+", "+how, func(t *testing.T) {
					got, err := run(ctx, t, ctr, test.script, test.change)
					if got != test.want && !(strings.Contains(test.want, "err") && got == "err\nout\n") {
						t.Errorf("it wrote %.200q, want %.200q", got, test.want)
					}
					switch code := exitCode(err); {
					case test.code == 0 && err != nil:
						t.Error(err)
					case test.code == 255 && (err == nil || code != -1 || !strings.Contains(err.Error(), "no such file")):
						t.Errorf("it ended with %v, want that it could not begin", err)
					case test.code != 0 && test.code != 255 && code != test.code:
						t.Errorf("it ended with %v, want %d", err, test.code)
					}
				})
			}
			if err := first.Release(ctx); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestContainerEnds ends processes by all there is.
func TestContainerEnds(t *testing.T) {
	c, _ := newClient(t)
	function(t, c, client.SolveOpt{}, func(ctx context.Context, g gateway.Client) {
		ctr := container(ctx, t, g, nil)
		first := start(ctx, t, ctr, "trap 'exit 7' USR1; while :; do sleep 0.05; done")
		second := start(ctx, t, ctr, "trap 'exit 8' INT; while :; do sleep 0.05; done")
		third := start(ctx, t, ctr, "sleep 100")
		if err := second.Signal(ctx, syscall.SIGINT); err != nil {
			t.Error(err)
		}
		if err := second.Wait(); exitCode(err) != 8 {
			t.Errorf("the one that was interrupted ended with %v", err)
		}
		first.Signal(ctx, syscall.SIGUSR1)
		if err := first.Wait(); exitCode(err) != 7 {
			t.Errorf("the first one ended with %v", err)
		}
		if err := third.Wait(); exitCode(err) != 128+9 {
			t.Errorf("when the first one had ended, another one did with %v", err)
		}
		if _, err := run(ctx, t, ctr, "true", nil); err == nil || !strings.Contains(err.Error(), "not running") {
			t.Errorf("entering afterwards: %v", err)
		}
		if err := ctr.Release(ctx); err != nil {
			t.Error(err)
		}

		ctr = container(ctx, t, g, nil)
		first = start(ctx, t, ctr, "sleep 100")
		second = start(ctx, t, ctr, "yes > /dev/null")
		if err := ctr.Release(ctx); err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
			t.Errorf("releasing a container in use: %v", err)
		}
		for _, p := range []gateway.ContainerProcess{first, second} {
			if err := p.Wait(); err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
				t.Errorf("a process of a container that was released ended with %v", err)
			}
		}
		if _, err := run(ctx, t, ctr, "true", nil); err == nil || !strings.Contains(err.Error(), "released") {
			t.Errorf("a process after the release: %v", err)
		}
		start(ctx, t, container(ctx, t, g, nil), "sleep 100") // left to the build's end
	})
}

// TestContainerTerminal works in a terminal.
func TestContainerTerminal(t *testing.T) {
	c, _ := newClient(t)
	function(t, c, client.SolveOpt{}, func(ctx context.Context, g gateway.Client) {
		ctr := container(ctx, t, g, nil)
		defer ctr.Release(ctx)
		for _, how := range []string{"first", "entering"} {
			in, typed := io.Pipe()
			out := newStream()
			p, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"sh"}, Tty: true, Stdin: in, Stdout: out, Stderr: out, Env: []string{"PS1=> "}})
			if err != nil {
				t.Fatal(err)
			}
			out.wait(ctx, t, "> ")
			if err := p.Resize(ctx, gateway.WinSize{Rows: 40, Cols: 132}); err != nil {
				t.Error(err)
			}
			io.WriteString(typed, "until [ \"$(stty size)\" = '40 132' ]; do sleep 0.02; done; echo re''sized $(tty) $TERM\n")
			out.wait(ctx, t, "resized /dev/pts/")
			if how == "first" {
				continue // the next one enters
			}
			io.WriteString(typed, "exit 3\n")
			if err := p.Wait(); exitCode(err) != 3 {
				t.Errorf("%s: the shell ended with %v", how, err)
			}
			typed.Close()
		}
	})
}

// TestContainerFiles mounts what there is, and reads it from outside.
func TestContainerFiles(t *testing.T) {
	c, _ := newClient(t)
	src := folder(t, map[string]string{"given": "local", "sub/part": "part"})
	o := client.SolveOpt{
		LocalMounts: map[string]fsutil.FS{"src": mount(t, src)},
		Session:     []session.Attachable{secretsprovider.FromMap(map[string][]byte{"token": []byte("secret")})},
	}
	function(t, c, o, func(ctx context.Context, g gateway.Client) {
		base := busybox().Run(llb.Args([]string{"sh", "-c", "echo base > /base; mkfifo /pipe; mknod /device c 5 0; ln -s /base /link; ln -s ../../../../etc/shadow /out"})).Root()
		local := solve(ctx, t, g, llb.Local("src"))
		cached := pb.CacheOpt{ID: t.Name(), Sharing: pb.CacheSharingOpt_SHARED}
		mounts := []gateway.Mount{
			{Dest: "/", Ref: solve(ctx, t, g, base)},
			{Dest: "/ro", Ref: local, Readonly: true},
			{Dest: "/part", Ref: local, Selector: "sub"},
			{Dest: "/cache", MountType: pb.MountType_CACHE, CacheOpt: &cached},
			{Dest: "/mem", MountType: pb.MountType_TMPFS},
			{Dest: "/secret", MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "token"}},
			{Dest: "/none"},
		}
		ctr := container(ctx, t, g, func(r *gateway.NewContainerRequest) { r.Mounts = mounts })
		read := func(index int, name string) (string, error) {
			data, err := ctr.ReadFile(ctx, gateway.ReadContainerRequest{ReadRequest: gateway.ReadRequest{Filename: name}, MountIndex: index})
			return string(data), err
		}
		if got, err := read(0, "/link"); got != "base\n" {
			t.Errorf("before there is a process, the root holds %q, %v", got, err)
		}
		got, err := run(ctx, t, ctr, "cat /base /ro/given /part/part /secret; echo new > /new; echo kept > /cache/f; echo x > /mem/f; echo w > /part/part; touch /none/f; touch /ro/f 2>/dev/null || echo read-only", nil)
		if want := "base\nlocalpartsecretread-only\n"; got != want || err != nil {
			t.Errorf("a process sees %q, %v; want %q", got, err, want)
		}
		for _, test := range []struct {
			index      int
			name, want string // a want of "!…" is an error's text
		}{
			{0, "/new", "new\n"}, {1, "/given", "local"}, {2, "/part", "w\n"}, {3, "/f", "kept\n"}, {5, "/", "secret"}, {6, "/f", ""},
			{0, "/pipe", "!not a regular file"}, {0, "/device", "!not a regular file"}, {0, "/none/f", "!no such file"}, {0, "/out", "!no such file"},
			{4, "/f", "!no files outside"}, {7, "/f", "!out of bounds"}, {-1, "/f", "!out of bounds"},
		} {
			got, err := read(test.index, test.name)
			text, fails := strings.CutPrefix(test.want, "!")
			if !fails && (got != test.want || err != nil) || fails && (err == nil || !strings.Contains(err.Error(), text)) {
				t.Errorf("mount %d, %s: got %q, %v; want %q", test.index, test.name, got, err, test.want)
			}
		}
		list, err := ctr.ReadDir(ctx, gateway.ReadDirContainerRequest{ReadDirRequest: gateway.ReadDirRequest{Path: "/", IncludePattern: "li*"}})
		if err != nil || len(list) != 1 || list[0].Path != "link" || list[0].Linkname != "/base" || os.FileMode(list[0].Mode)&os.ModeSymlink == 0 {
			t.Errorf("the root's links are %v, %v", list, err)
		}
		if st, err := ctr.StatFile(ctx, gateway.StatContainerRequest{StatRequest: gateway.StatRequest{Path: "/link"}}); err != nil || st.Size != 5 {
			t.Errorf("behind the link is %v, %v", st, err)
		}
		if err := ctr.Release(ctx); err != nil {
			t.Error(err)
		}
		// Nothing but the cache has changed.
		ctr = container(ctx, t, g, func(r *gateway.NewContainerRequest) { r.Mounts = mounts })
		if got, err := run(ctx, t, ctr, "cat /part/part /cache/f; ls /none /new 2>/dev/null", nil); got != "partkept\n" && exitCode(err) != 1 {
			t.Errorf("the next container sees %q, %v", got, err)
		}
	})
}

// TestContainerIsRefused asks for what was not granted, or makes no sense.
func TestContainerIsRefused(t *testing.T) {
	c, _ := newClient(t)
	function(t, c, client.SolveOpt{}, func(ctx context.Context, g gateway.Client) {
		refused := func(what, want string, err error) {
			t.Helper()
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", what, err, want)
			}
		}
		_, err := g.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/a"}}})
		refused("no root", "root mount is required", err)
		_, err = g.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/", ResultID: "nosuch"}}})
		refused("a result of nobody's", "no such ref", err)
		_, err = g.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/"}, {Dest: "/s", MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "nosuch"}}}})
		refused("a secret that nobody lends", "not found", err)

		host := container(ctx, t, g, func(r *gateway.NewContainerRequest) { r.NetMode = pb.NetMode_HOST })
		_, err = run(ctx, t, host, "true", nil)
		refused("the host's network", "network.host is not allowed", err)
		ctr := container(ctx, t, g, nil)
		start(ctx, t, ctr, "sleep 100")
		_, err = run(ctx, t, ctr, "true", func(r *gateway.StartRequest) { r.SecurityMode = pb.SecurityMode_INSECURE })
		refused("privileges", "security.insecure is not allowed", err)
		_, err = run(ctx, t, ctr, "true", func(r *gateway.StartRequest) { r.SecurityMode = 2 })
		refused("a mode that there is not", "invalid security mode", err)
	})
}

// TestFailedStep enters what failed steps have left.
func TestFailedStep(t *testing.T) {
	c, _ := newClient(t)
	function(t, c, client.SolveOpt{}, func(ctx context.Context, g gateway.Client) {
		fails := func(st llb.State) *errdefs.SolveError {
			t.Helper()
			_, err := g.Solve(ctx, gateway.SolveRequest{Definition: marshal(t, st).ToPB(), Evaluate: true})
			var failed *errdefs.SolveError
			if !errors.As(err, &failed) {
				t.Fatalf("it ended with %v, which tells of no step", err)
			}
			return failed
		}
		see := func(id, want string) {
			t.Helper()
			ctr := container(ctx, t, g, func(r *gateway.NewContainerRequest) {
				r.Mounts = append(r.Mounts, gateway.Mount{Dest: "/see", ResultID: id})
			})
			defer ctr.Release(ctx)
			if got, err := run(ctx, t, ctr, "cd /see && for f in $(find . -type f | sort); do echo $f $(cat $f); done", nil); got != want {
				t.Errorf("the result holds %q, %v; want %q", got, err, want)
			}
		}

		given := llb.Scratch().File(llb.Mkfile("/given", 0o644, []byte("given")))
		failed := fails(busybox().Run(
			llb.Args([]string{"sh", "-c", "echo wrote > /root-file; echo more > /rw/more; echo gone > /lost/f; exit 9"}),
			llb.AddMount("/rw", given), llb.AddMount("/lost", llb.Scratch(), llb.ForceNoOutput), llb.AddMount("/ro", given, llb.Readonly),
		).Root())
		if exitCode(failed) != 9 || failed.Op.GetExec() == nil || len(failed.InputIDs) != 4 || len(failed.MountIDs) != 4 {
			t.Errorf("the step failed with %v: %v", failed, failed.Solve)
		}
		for i, m := range failed.Op.GetExec().GetMounts() {
			want := map[string]string{"/rw": "./given given\n./more more\n", "/lost": "./f gone\n", "/ro": "./given given\n"}[m.Dest]
			if m.Dest != "/" {
				see(failed.MountIDs[i], want)
				continue
			}
			root := container(ctx, t, g, func(r *gateway.NewContainerRequest) {
				r.Mounts[0] = gateway.Mount{Dest: "/", ResultID: failed.MountIDs[i]}
			})
			if got, err := run(ctx, t, root, "cat /root-file", nil); got != "wrote\n" {
				t.Errorf("the step's root holds %q, %v", got, err)
			}
		}

		failed = fails(given.File(llb.Mkdir("/d", 0o755).Mkfile("/d/made", 0o644, []byte("made")).Mkfile("/no/such/folder", 0o644, nil)))
		if failed.GetFile().GetIndex() != 2 || len(failed.InputIDs) != 1 || len(failed.MountIDs) != 3 {
			t.Fatalf("the file operation failed with %v", failed.Solve)
		}
		see(failed.InputIDs[0], "./given given\n")
		see(failed.MountIDs[1], "./d/made made\n./given given\n")
		see(failed.MountIDs[2], "./d/made made\n./given given\n")

		for name, st := range map[string]llb.State{
			"a mount": busybox().Run(llb.Args([]string{"true"}), llb.AddMount("/src", given, llb.SourcePath("/nosuch"), llb.Readonly)).Root(),
			"a copy":  llb.Scratch().File(llb.Copy(given, "/nosuch", "/")),
		} {
			failed = fails(st)
			if failed.GetCache() == nil || len(failed.InputIDs) != 1 || len(failed.MountIDs) != 0 {
				t.Fatalf("%s of what is not there failed with %v", name, failed.Solve)
			}
			see(failed.InputIDs[0], "./given given\n")
		}
		if _, err := g.Solve(ctx, gateway.SolveRequest{Definition: marshal(t, busybox()).ToPB()}); err != nil {
			t.Error(err)
		}
	})
}
