package executor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestExit(t *testing.T) {
	n := newNative(t)
	cases := []struct {
		name, script string
		code         int
		signal       os.Signal
	}{
		{"success", "true", 0, nil},
		{"a code", "exit 42", 42, nil},
		// a child ended by a signal is the shell's code, not a signal of the process
		{"child's signal", "sh -c 'kill -SEGV $$'; exit $?", 128 + 11, nil},
		// the first process of a namespace is not ended by its own signals
		{"own signal", "kill -TERM $$; exit 7", 7, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := output(t, n, shell(t, c.script))
			checkExit(t, err, c.code, c.signal)
		})
	}
}

func checkExit(t *testing.T, err error, code int, signal os.Signal) {
	t.Helper()
	var e *ExitError
	if !errors.As(err, &e) {
		if err != nil || code != 0 {
			t.Fatalf("got %v, want exit code %d", err, code)
		}
		return
	}
	if e.Code != code || e.Signal != signal {
		t.Fatalf("got code %d, signal %v; want %d, %v", e.Code, e.Signal, code, signal)
	}
}

func TestOutput(t *testing.T) {
	n := newNative(t)
	s := shell(t, "cat; echo out; echo err >&2; yes | head -c 3000000")
	var out, errs bytes.Buffer
	s.Stdin, s.Stdout, s.Stderr = strings.NewReader("in\n"), &out, &errs
	if err := n.Run(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.HasPrefix(got, "in\nout\ny\n") || len(got) != 7+3000000 {
		t.Errorf("%d bytes of output, beginning %.20q", len(got), got)
	}
	if errs.String() != "err\n" {
		t.Errorf("standard error %q", errs.String())
	}
}

func TestSees(t *testing.T) {
	n := newNative(t)
	base := func(t *testing.T) Spec { return shell(t, "") }
	cases := []struct {
		name   string
		change func(s *Spec)
		script string
		want   string
	}{
		{"pid 1", nil, "echo $$", "1"},
		{"host name by default", nil, "hostname", "buildkitsandbox"},
		{"host name", func(s *Spec) { s.Hostname = "box" }, "hostname; head -n1 /etc/hosts", "box\n127.0.0.1\tlocalhost box"},
		{"extra hosts", func(s *Spec) { s.ExtraHosts = []HostIP{{"db", net.ParseIP("10.1.2.3")}} }, "tail -n1 /etc/hosts", "10.1.2.3\tdb"},
		{"default PATH and HOME", nil, "echo $PATH $HOME", defaultPath + " /root"},
		{"environment", func(s *Spec) { s.Env = []string{"PATH=/bin", "HOME=/x", "A=b c"} }, "echo $PATH $HOME $A", "/bin /x b c"},
		{"working folder", func(s *Spec) { s.Cwd = "/tmp" }, "pwd", "/tmp"},
		{"missing working folder", func(s *Spec) { s.Cwd = "/a/b"; s.User = "ann" }, "pwd; stat -c '%U %a' .", "/a/b\nann 755"},
		{"user by name", func(s *Spec) { s.User = "ann" }, "id; echo $HOME", "uid=1000(ann) gid=1000(ann) groups=10(wheel),44(video),1000(ann)\n/home/ann"},
		{"user by number", func(s *Spec) { s.User = "1000" }, "id", "uid=1000(ann) gid=1000(ann) groups=10(wheel),44(video),1000(ann)"},
		{"user and group", func(s *Spec) { s.User = "ann:video" }, "id", "uid=1000(ann) gid=44(video) groups=44(video)"},
		{"numbers that nobody has", func(s *Spec) { s.User = "123:456" }, "id -u; id -G; echo $HOME", "123\n456\n/"},
		{"a user's capabilities", func(s *Spec) { s.User = "ann" }, "grep CapEff /proc/self/status", "CapEff:\t0000000000000000"},
		{"root's capabilities", nil, "grep CapEff /proc/self/status", "CapEff:\t00000000a80425fb"},
		{"no_new_privs is off", nil, "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t0"},
		{"a filter", nil, "grep Seccomp: /proc/self/status", "Seccomp:\t2"},
		{"umask", nil, "umask", "0022"},
		{"ulimit", func(s *Spec) { s.Ulimits = []Ulimit{{"nofile", 77, 78}, {"core", 0, -1}} }, "ulimit -n; ulimit -Hn; ulimit -c", "77\n78\n0"},
		{"no network", nil, "ls /sys/class/net; ip -o addr | head -n1 | awk '{print $4}'", "lo\n127.0.0.1/8"},
		{"shared memory", func(s *Spec) { s.Resources.ShmSize = 1 << 20 }, "df -k /dev/shm | tail -n1 | awk '{print $2}'", "1024"},
		{"a user writes its own output", func(s *Spec) { s.User = "ann" }, "echo x >/dev/stdout", "x"},
		{"groups of the privileged", func(s *Spec) { s.Insecure = true }, "cd /sys/fs/cgroup; [ -d cpuset ] && cd cpuset; mkdir mine mine/more && echo ok", "ok"},
		{"no groups of others", nil, "cd /sys/fs/cgroup; for d in . *; do mkdir $d/mine 2>/dev/null && echo made; done; echo none", "none"},
		{"insecure", func(s *Spec) { s.Insecure = true }, "grep -E 'Seccomp:' /proc/self/status; mount -t tmpfs x /tmp && echo ok; test -w /proc/sys/kernel/hostname && echo rw", "Seccomp:\t0\nok\nrw"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := base(t)
			s.Args[3] = c.script
			if c.change != nil {
				c.change(&s)
			}
			got, err := output(t, n, s)
			if err != nil || strings.TrimSpace(got) != c.want {
				t.Fatalf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

// What goes wrong before the process runs is said so that one can act on it.
func TestRefuses(t *testing.T) {
	n := newNative(t)
	cases := []struct {
		name   string
		change func(s *Spec)
		want   string
	}{
		{"no program", func(s *Spec) { s.Args = nil }, "no program is given"},
		{"not in PATH", func(s *Spec) { s.Args = []string{"nosuch"} }, "exec nosuch: no such program in PATH"},
		{"no file", func(s *Spec) { s.Args = []string{"/nosuch"} }, "executing /nosuch: no such file or directory (the file, or the interpreter"},
		{"not executable", func(s *Spec) { s.Args = []string{"/etc/passwd"} }, "executing /etc/passwd: permission denied"},
		{"unknown user", func(s *Spec) { s.User = "bob" }, `user "bob" is not in the image's /etc/passwd`},
		{"unknown group", func(s *Spec) { s.User = "ann:cats" }, `group "cats" is not in the image's /etc/group`},
		{"unknown limit", func(s *Spec) { s.Ulimits = []Ulimit{{"cats", 1, 1}} }, `ulimit "cats"`},
		{"a file as working folder", func(s *Spec) { s.Cwd = "/etc/passwd" }, "working folder /etc/passwd: not a directory"},
		{"a missing layer", func(s *Spec) { s.Root.Lower = []string{"/nosuch"} }, "stacking layer /nosuch"},
		{"a mount without source", func(s *Spec) { s.Mounts = []Mount{{Dest: "/x"}} }, "mounting /x: the mount has no source"},
		{"a mount on the root", func(s *Spec) { s.Mounts = []Mount{{Dest: "/tmp/..", Tmpfs: &Tmpfs{}}} }, "the root itself"},
		{"a source that is not there", func(s *Spec) { s.Mounts = []Mount{{Dest: "/x", Source: "/nosuch"}} }, "binding /nosuch: no such file"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := shell(t, "true")
			c.change(&s)
			_, err := output(t, n, s)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want it to say %q", err, c.want)
			}
			var e *ExitError
			if errors.As(err, &e) {
				t.Fatal("it was taken for the process's own end")
			}
		})
	}
	checkNothingLeft(t)
}

// What a step leaves running ends with it.
func TestBackgroundProcess(t *testing.T) {
	n := newNative(t)
	start := time.Now()
	out, err := output(t, n, shell(t, "sleep 54321 & (setsid sleep 54322 &) ; echo done"))
	if err != nil || out != "done\n" {
		t.Fatalf("%q, %v", out, err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("it took %v", d)
	}
	checkNothingLeft(t)
}

// checkNothingLeft looks for processes, mounts and cgroups of steps.
func checkNothingLeft(t testing.TB) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), "kiln-executor-test") || strings.Contains(string(mounts), os.TempDir()+"/Test") {
		t.Errorf("mounts are left:\n%s", mounts)
	}
	comms, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, c := range comms {
		if b, _ := os.ReadFile(c); strings.Contains(string(b), "sleep\x005432") {
			t.Errorf("process %s is left: %q", c, b)
		}
	}
	own := fmt.Sprintf(".%d.", os.Getpid())
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/kiln/*")
	for _, g := range groups {
		if strings.Contains(filepath.Base(g), own) {
			t.Errorf("cgroup %s is left", g)
		}
	}
}

func TestCancel(t *testing.T) {
	n := newNative(t)
	reason := errors.New("the user went away")
	for i := range 40 {
		ctx, cancel := context.WithCancelCause(context.Background())
		s := shell(t, "sleep 54321 & sleep 54323")
		time.AfterFunc(time.Duration(i)*500*time.Microsecond, func() { cancel(reason) })
		if err := n.Run(ctx, s); !errors.Is(err, reason) {
			t.Fatalf("got %v, want %v", err, reason)
		}
	}
	checkNothingLeft(t)
}

// With a grace period a process may end by itself.
func TestGrace(t *testing.T) {
	n, err := New(Options{Dir: t.TempDir(), Grace: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	ctx, cancel := context.WithCancel(context.Background())
	s := shell(t, "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done")
	r, w := io.Pipe()
	s.Stdout = w
	got := make(chan string)
	go func() {
		b := make([]byte, 6)
		io.ReadFull(r, b)
		cancel()
		rest, _ := io.ReadAll(r)
		got <- string(b) + string(rest)
	}()
	if err := n.Run(ctx, s); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	w.Close()
	if g := <-got; g != "ready\nbye\n" {
		t.Errorf("output %q", g)
	}
}

func TestSignals(t *testing.T) {
	n := newNative(t)
	s := shell(t, "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done")
	signals := make(chan os.Signal, 1)
	s.Signals = signals
	s.Stdout = writerFunc(func(b []byte) (int, error) { signals <- syscall.SIGUSR1; return len(b), nil })
	checkExit(t, n.Run(context.Background(), s), 9, nil)

	s = shell(t, "echo ready; sleep 54321")
	s.Signals = signals
	s.Stdout = writerFunc(func(b []byte) (int, error) { signals <- syscall.SIGKILL; return len(b), nil })
	checkExit(t, n.Run(context.Background(), s), 137, syscall.SIGKILL)
}

type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestStarted(t *testing.T) {
	n := newNative(t)
	s := shell(t, "true")
	pid := 0
	s.Started = func(p int) { pid = p }
	if err := n.Run(context.Background(), s); err != nil || pid <= 1 {
		t.Errorf("pid %d, %v", pid, err)
	}
}

func TestTerminal(t *testing.T) {
	n := newNative(t)
	s := shell(t, "tty; test -t 0 && test -t 2 && echo yes; ls /dev/console; read x; stty size; echo got $x")
	sizes := make(chan WindowSize, 1)
	sizes <- WindowSize{Rows: 33, Cols: 77}
	s.Terminal = &Terminal{Resize: sizes}
	var out bytes.Buffer
	var mu sync.Mutex
	s.Stdout = writerFunc(func(b []byte) (int, error) { mu.Lock(); defer mu.Unlock(); return out.Write(b) })
	r, w := io.Pipe()
	s.Stdin = r
	time.AfterFunc(100*time.Millisecond, func() { io.WriteString(w, "word\n") })
	err := n.Run(context.Background(), s)
	w.Close()
	mu.Lock()
	defer mu.Unlock()
	if got := strings.ReplaceAll(out.String(), "\r", ""); err != nil || got != "/dev/pts/0\nyes\n/dev/console\nword\n33 77\ngot word\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestMemoryLimit(t *testing.T) {
	n := newNative(t)
	s := shell(t, "head -c 200000000 /dev/zero | tail -c 200000000 | wc -c")
	s.Resources.Memory, s.Resources.MemorySwap = 32<<20, 32<<20
	s.Args = []string{"/bin/busybox", "tail", "-c", "200000000", "/dev/zero"}
	_, err := output(t, n, s)
	var e *ExitError
	if !errors.As(err, &e) || !e.OOM || e.Code != 137 {
		t.Fatalf("got %v, want a process killed for memory", err)
	}
	if !strings.Contains(e.Error(), "ran out of memory") {
		t.Errorf("the error says %q", e)
	}
	checkNothingLeft(t)
}

func TestForkBomb(t *testing.T) {
	n := newNative(t)
	s := shell(t, "i=0; while [ $i -lt 100 ]; do sleep 54321 & i=$((i+1)); done; echo all")
	s.Resources.PIDs = 20
	out, err := output(t, n, s)
	if err == nil || strings.Contains(out, "all") || !strings.Contains(out, "fork") {
		t.Fatalf("got %q, %v; want forks to fail", out, err)
	}
	checkNothingLeft(t)
}

func TestResources(t *testing.T) {
	n := newNative(t)
	s := shell(t, "cat /sys/fs/cgroup/cpu/cpu.shares /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpuset/cpuset.cpus 2>/dev/null || cat /sys/fs/cgroup/cpu.max; nproc")
	s.Resources = Resources{CPUShares: 512, CPUPeriod: 100000, CPUQuota: 50000, CPUSetCPUs: "0"}
	out, err := output(t, n, s)
	if err != nil || out != "512\n50000\n0\n1\n" && out != "50000 100000\n1\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

// Many at once, each with its own root.
func TestParallel(t *testing.T) {
	n := newNative(t)
	var wg sync.WaitGroup
	for i := range 50 {
		s := shell(t, fmt.Sprintf("echo %d >/out; cat /out; exit %d", i, i%3))
		wg.Go(func() {
			out, err := output(t, n, s)
			if out != fmt.Sprintf("%d\n", i) {
				t.Errorf("run %d: %q", i, out)
			}
			var e *ExitError
			if code := i % 3; code != 0 && (!errors.As(err, &e) || e.Code != code) || code == 0 && err != nil {
				t.Errorf("run %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	checkNothingLeft(t)
}

// The program that starts steps is out of their reach: the only file that
// /proc/self/exe ever leads to before the step's own program is the stub.
func TestOwnExecutable(t *testing.T) {
	n := newNative(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var before, after unix.Stat_t
	if err := unix.Stat(self, &before); err != nil {
		t.Fatal(err)
	}
	// A program whose interpreter is /proc/self/exe runs whatever is being executed at that time.
	layer := t.TempDir()
	if err := os.WriteFile(filepath.Join(layer, "trap"), []byte("#!/proc/self/exe sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self/exe", filepath.Join(layer, "link")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"/trap"}, {"/link"}, {"/proc/self/exe"}} {
		if err := n.Run(context.Background(), onLayers(t, []string{busybox, layer}, args...)); err == nil {
			t.Errorf("%q ran", args)
		}
	}
	// And from inside, the way that was used against runc.
	out, err := output(t, n, shell(t, "echo x 2>&1 >/proc/self/exe; for p in /proc/[0-9]*; do readlink $p/exe; echo x 2>/dev/null >>$p/exe; done | sort -u"))
	if err != nil || strings.Contains(out, filepath.Base(self)) {
		t.Errorf("got %q, %v", out, err)
	}
	if err := unix.Stat(self, &after); err != nil || before.Mtim != after.Mtim || before.Size != after.Size {
		t.Errorf("the executable was changed: %v", err)
	}
}
