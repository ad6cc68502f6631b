package cache

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sys/unix"
)

// TestMain lets tests run this binary again as another process that has a state folder.
func TestMain(m *testing.M) {
	switch dir := os.Getenv("KILN_TEST_DIR"); os.Getenv("KILN_TEST_ROLE") {
	case "hold":
		holdFolder(dir)
	case "write":
		writeForever(dir)
	case "cycle":
		cycleForever(dir)
	default:
		os.Exit(m.Run())
	}
}

// holdFolder has the folder until standard input ends.
func holdFolder(dir string) {
	c, err := Open(context.Background(), dir, Options{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("open")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	_ = c.Close()
	os.Exit(0)
}

// writeForever makes layers and records until it is killed. A line on standard
// output is the number of a record that was stored.
func writeForever(dir string) {
	c, err := Open(context.Background(), dir, Options{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	start, _ := strconv.Atoi(os.Getenv("KILN_TEST_START"))
	fmt.Println("open")
	for n := start; ; n++ {
		var b tree.Builder
		for i := range 20 {
			data := fmt.Sprintf("%d %d", n, i)
			e := fileEntry(fmt.Sprintf("f%d", i), []byte(data))
			if err := errors.Join(b.Set(e.Name, e), c.Pool().Put(context.Background(), e, strings.NewReader(data))); err != nil {
				panic(err)
			}
		}
		root, err := b.Root(c)
		if err != nil {
			panic(err)
		}
		l := Layer{ID: TreeLayerID(root), Root: root}
		if err := c.PutLayer(l); err != nil {
			panic(err)
		}
		id, err := c.Extend(ChainID{}, l.ID)
		if err != nil {
			panic(err)
		}
		if err := c.Store(Record{Outputs: []ChainID{id}, Name: "step"}, key(n)); err != nil {
			panic(err)
		}
		fmt.Println(n)
	}
}

// cycleForever opens, writes to and closes the folder until it is killed. It
// fails when a database is found damaged.
func cycleForever(dir string) {
	for n := 0; ; n++ {
		c, err := Open(context.Background(), dir, Options{LazyClose: n%4 != 0, Warn: func(err error) {
			fmt.Println(err)
		}})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		for i := range 50 {
			if err := c.Store(Record{Name: random(uint64(n), 1000*(n%40)), Duration: time.Duration(n)}, key(1000*n+i)); err != nil {
				fmt.Println(err)
			}
		}
		if err := c.Close(); err != nil {
			fmt.Println(err)
		}
	}
}

// TestKilledWhileOpening kills at moments of which most are in opening and closing.
func TestKilledWhileOpening(t *testing.T) {
	dir := t.TempDir()
	for round := range 40 {
		if round%4 == 0 {
			dir = t.TempDir() // making a folder may be interrupted too
		}
		cmd, out := rerun(t, "cycle", dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(time.Duration(10+3*round) * time.Millisecond)
			_ = cmd.Process.Kill()
		}()
		said, _ := io.ReadAll(out)
		_ = cmd.Wait()
		if len(said) != 0 {
			t.Errorf("round %d: %s", round, said)
		}
	}
	closeCache(t, open(t, dir, Options{}))
}

func rerun(t *testing.T, role, dir string, env ...string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "KILN_TEST_ROLE="+role, "KILN_TEST_DIR="+dir)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}

func TestLockContention(t *testing.T) {
	dir := t.TempDir()
	cmd, out := rerun(t, "hold", dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := out.ReadString('\n'); line != "open\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}

	// A context ends the waiting.
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err = Open(ctx, dir, Options{})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), strconv.Itoa(cmd.Process.Pid)) {
		t.Errorf("got %v, want a deadline error that names process %d", err, cmd.Process.Pid)
	}

	// The one that waits is told for whom, and goes on when that one is done.
	told := make(chan int, 10)
	opened := make(chan error, 1)
	go func() {
		c, err := Open(context.Background(), dir, Options{Waiting: func(pid int, command string) {
			if command == "" {
				t.Error("the other's command is empty")
			}
			told <- pid
		}})
		if err == nil {
			err = c.Close()
		}
		opened <- err
	}()
	if pid := <-told; pid != cmd.Process.Pid {
		t.Errorf("told to wait for %d, want %d", pid, cmd.Process.Pid)
	}
	_ = in.Close()
	if err := <-opened; err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if len(told) != 0 {
		t.Errorf("told %d times more", len(told))
	}
}

func TestKilledWhileWriting(t *testing.T) {
	dir := t.TempDir()
	next := 0
	for round := range 8 {
		cmd, out := rerun(t, "write", dir, "KILN_TEST_START="+strconv.Itoa(next))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := out.ReadString('\n'); line != "open\n" {
			t.Fatalf("the other process says %q, %v", line, err)
		}
		go func() {
			time.Sleep(time.Duration(50+37*round) * time.Millisecond)
			_ = cmd.Process.Kill()
		}()
		for {
			line, err := out.ReadString('\n')
			if err != nil {
				break
			}
			n, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				t.Fatalf("the other process says %q", line)
			}
			next = n + 1
		}
		_ = cmd.Wait()

		c := open(t, dir, Options{})
		found := 0
		for n := range next {
			r, err := c.Lookup(key(n))
			if err != nil {
				continue
			}
			found++
			layers, err := c.Layers(r.Outputs[0])
			if err != nil {
				t.Fatal(err)
			}
			err = tree.Walk(c, layers[0].Root, func(path string, e tree.Entry) error {
				if e.Kind == tree.File && !c.Pool().Has(e) {
					return fmt.Errorf("%s is not in the pool", path)
				}
				return nil
			})
			if err != nil {
				t.Errorf("record %d: %v", n, err)
			}
		}
		t.Logf("round %d: %d of %d records are here", round, found, next)
		if found == 0 && next > 200 {
			t.Error("nothing of what was written is here")
		}
		closeCache(t, c)
	}
}

func TestCrashOfTheMachine(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Options{bootID: "first"})
	build(t, c, 1, ChainID{}, map[string]string{"durable": "1"})
	if err := c.closeEpoch(); err != nil {
		t.Fatal(err)
	}
	build(t, c, 2, ChainID{}, map[string]string{"open": "2"})
	crash(t, c)

	// The kernel lived on: all is here.
	c = open(t, dir, Options{bootID: "first"})
	wholeness(t, c, 1)
	wholeness(t, c, 2)
	crash(t, c)

	// It did not: what the open epoch wrote is dropped, files too.
	c = open(t, dir, Options{bootID: "second"})
	wholeness(t, c, 1)
	missing(t, c, 2)
	if c.Pool().Has(fileEntry("open", []byte("2"))) {
		t.Error("a file of the open epoch is here")
	}
	if n := countFiles(t, c.Path("files")); n != 1 {
		t.Errorf("%d files are in the pool, want 1", n)
	}
	if n := countFiles(t, c.Path("layers")); n != 1 {
		t.Errorf("%d files are in layers' folders, want 1", n)
	}
	build(t, c, 3, ChainID{}, map[string]string{"new": "3"})
	crash(t, c)

	// The note of the first start is no reason to drop what this one wrote.
	c = open(t, dir, Options{bootID: "second"})
	wholeness(t, c, 1)
	wholeness(t, c, 3)
	closeCache(t, c)

	// Close closes the epoch.
	c = open(t, dir, Options{bootID: "third"})
	wholeness(t, c, 3)
	closeCache(t, c)
}

// crash ends c as a kill would end its process: nothing is flushed but what
// Badger has, and the lock's note stays.
func crash(t *testing.T, c *Cache) {
	t.Helper()
	if err := c.db.flush(); err != nil {
		t.Fatal(err)
	}
	note, err := os.ReadFile(c.Path("lock"))
	if err != nil {
		t.Fatal(err)
	}
	c.opt.LazyClose = true
	closeCache(t, c)
	if err := os.WriteFile(c.Path("lock"), note, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLazyCloseKeepsTheNote(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Options{LazyClose: true})
	build(t, c, 1, ChainID{}, map[string]string{"a": "1"})
	closeCache(t, c)
	c = open(t, dir, Options{})
	if !c.undurable() {
		t.Error("the epoch that was left open is nobody's to close")
	}
	closeCache(t, c)
	if b, err := os.ReadFile(filepath.Join(dir, "lock")); err != nil || len(b) != 0 {
		t.Errorf("the lock file holds %q, %v", b, err)
	}
}

func TestDamagedDatabase(t *testing.T) {
	for _, row := range []struct {
		name   string
		damage func(t *testing.T, file string)
	}{
		{"cut in half", func(t *testing.T, file string) {
			st, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(file, st.Size()/2); err != nil {
				t.Fatal(err)
			}
		}},
		{"emptied", func(t *testing.T, file string) {
			if err := os.Truncate(file, 0); err != nil {
				t.Fatal(err)
			}
		}},
		{"overwritten", func(t *testing.T, file string) {
			st, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(random(7, int(min(st.Size(), 1<<20)))), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"scribbled on", func(t *testing.T, file string) {
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte(random(7, 3000)), 0); err != nil {
				t.Fatal(err)
			}
		}},
		{"removed", func(t *testing.T, file string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		for _, pattern := range []string{"MANIFEST", "*.sst", "*.vlog", "recent", "*"} {
			t.Run(row.name+" "+pattern, func(t *testing.T) {
				dir := t.TempDir()
				c := open(t, dir, Options{LazyClose: true, noRecent: pattern != "recent"})
				for i := range 300 {
					putChain(t, c, ChainID{}, map[string]string{"a": fmt.Sprint(i)})
				}
				build(t, c, 1, ChainID{}, map[string]string{"a": "1"})
				closeCache(t, c)
				files, err := filepath.Glob(filepath.Join(dir, "db", pattern))
				if err != nil || len(files) == 0 {
					t.Fatalf("%d files, %v", len(files), err)
				}
				for _, f := range files {
					row.damage(t, f)
				}
				// Twice: damage may be found while reading, and set aside after that.
				for range 2 {
					var mu sync.Mutex
					warned := ""
					c = open(t, dir, Options{LazyClose: true, Warn: func(err error) {
						mu.Lock()
						defer mu.Unlock()
						warned += err.Error() + "\n"
					}})
					var miss *MissError
					if _, err := c.Lookup(key(1)); err != nil && !errors.As(err, &miss) {
						t.Errorf("looking up: %v", err)
					}
					if err := c.Close(); err != nil {
						t.Logf("closing: %v", err)
					}
					t.Logf("warned: %s", warned)
				}
				c = open(t, dir, Options{Warn: func(error) {}})
				build(t, c, 2, ChainID{}, map[string]string{"a": "2"})
				wholeness(t, c, 2)
				if _, err := c.Prune(context.Background(), PruneOptions{Filter: onlyLoose}); err != nil {
					t.Error(err)
				}
				if aside, _ := filepath.Glob(filepath.Join(dir, "db.corrupt-*")); len(aside) != 0 {
					t.Errorf("prune left %v", aside)
				}
				wholeness(t, c, 2)
				closeCache(t, c)
			})
		}
	}
}

func TestNewerVersion(t *testing.T) {
	for _, row := range []struct{ version, want string }{
		{"kiln state 2\n", "newer kiln"},
		{"something else", "no format of kiln's"},
		{"kiln state 0\n", "no format of kiln's"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "version"), []byte(row.version), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(context.Background(), dir, Options{})
		if err == nil || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%q: got %v, want an error that says %q", row.version, err, row.want)
		}
	}
}

func TestForeignFolder(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), dir, Options{}); err == nil || !strings.Contains(err.Error(), "thesis.tex") {
		t.Errorf("got %v, want an error that names the file", err)
	}
}

func TestNoPermission(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can take another user's rights")
	}
	dir := t.TempDir()
	closeCache(t, open(t, dir, Options{}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The thread ends with the goroutine, and its rights with it.
		runtime.LockOSThread()
		if err := unix.Setfsuid(65534); err != nil {
			t.Error(err)
			return
		}
		_, err := Open(context.Background(), dir, Options{})
		if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "--root") {
			t.Errorf("got %v, want a permission error that says what to do", err)
		}
	}()
	<-done
}

func TestReadOnlyFolder(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount")
	}
	dir := t.TempDir()
	closeCache(t, open(t, dir, Options{}))
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), dir, Options{}); !errors.Is(err, unix.EROFS) {
		t.Errorf("got %v, want EROFS", err)
	}
}

func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	state := filepath.Join(dir, "state")
	c := open(t, state, Options{Warn: func(error) {}})
	build(t, c, 1, ChainID{}, map[string]string{"a": "1"})
	if err := c.db.flush(); err != nil {
		t.Fatal(err)
	}
	big := random(1, 4<<20)
	var err error
	for i := 0; err == nil && i < 100; i++ {
		e := fileEntry(fmt.Sprint(i), []byte(big))
		e.Tag = uint64(i)
		err = c.Pool().Put(context.Background(), e, strings.NewReader(big))
	}
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "kiln prune") {
		t.Errorf("got %v, want ENOSPC and what to do", err)
	}
	wholeness(t, c, 1)
	err = nil
	for i := 0; err == nil && i < 10_000; i++ {
		err = c.Store(Record{Name: "step"}, key(i+10))
		if i%100 == 0 {
			_ = c.db.flush()
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("writing to the database: got %v, want ENOSPC", err)
	}
	if err := c.Close(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("closing: got %v, want ENOSPC", err)
	}

	// No room to open, and then just so much.
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 64<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	if _, err := Open(context.Background(), state, Options{}); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("opening: got %v, want ENOSPC and what to do", err)
	}
	if st, err := os.Stat(ballast); err != nil {
		t.Fatal(err)
	} else if err := os.Truncate(ballast, st.Size()-2<<20); err != nil {
		t.Fatal(err)
	}
	c = open(t, state, Options{Warn: func(error) {}})
	wholeness(t, c, 1)
	prune(t, c, PruneOptions{Filter: onlyLoose}) // removes the files that no record leads to
	wholeness(t, c, 1)
	build(t, c, 2, ChainID{}, map[string]string{"a": "2"})
	wholeness(t, c, 2)
	closeCache(t, c)
}
