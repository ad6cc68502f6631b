package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProgram(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	cases := []struct {
		name  string
		build func(p *Program)
		want  string // of standard output
		call  string // that fails
		errno syscall.Errno
	}{
		// a result is used by a later call
		{"result", func(p *Program) {
			c := p.Call("dup", unix.SYS_DUP, Int(1))
			p.Call("write", unix.SYS_WRITE, c.Result(), p.String("hello"), Int(5))
			exec(p, "/bin/true")
		}, "hello", "", 0},
		// an error that is allowed jumps over the call behind it
		{"jump", func(p *Program) {
			c := p.Call("open", unix.SYS_OPENAT, Int(-1), p.String("/nowhere"), Int(0))
			p.Call("write", unix.SYS_WRITE, Int(1), p.String("no"), Int(2))
			p.OnError(syscall.ENOENT, c)
			p.Call("write", unix.SYS_WRITE, Int(1), p.String("yes"), Int(3))
			exec(p, "/bin/true")
		}, "yes", "", 0},
		// another error than the allowed one ends the program and is reported
		{"other error", func(p *Program) {
			c := p.Call("opening", unix.SYS_OPENAT, Int(-1), p.String("/nowhere"), Int(0))
			p.OnError(syscall.EACCES, c)
			exec(p, "/bin/true")
		}, "", "opening", syscall.ENOENT},
		// addresses inside data are addresses in the stub
		{"pointers", func(p *Program) {
			s := p.String("abc")
			iov := p.Words(s, Int(3))
			p.Call("writev", unix.SYS_WRITEV, Int(1), iov, Int(1))
			exec(p, "/bin/true")
		}, "abc", "", 0},
		// arguments and environment reach the process
		{"exec", func(p *Program) { exec(p, "/bin/sh") }, "a1 v\n", "", 0},
		{"no such program", func(p *Program) { exec(p, "/nowhere") }, "", "exec", syscall.ENOENT},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f.Truncate(0)
			f.Seek(0, 0)
			var p Program
			c.build(&p)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			null, _ := os.Open(os.DevNull)
			defer null.Close()
			proc, err := Start(&p, []string{"sh", "-c", "echo $0 $V", "a1"}, []string{"V=v"},
				[3]uintptr{null.Fd(), f.Fd(), 2}, nil, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL})
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(proc.PidFD)
			err = proc.Wait()
			var ws syscall.WaitStatus
			syscall.Wait4(proc.Pid, &ws, 0, nil)
			var e *Error
			if errors.As(err, &e) != (c.call != "") {
				t.Fatalf("error %v, want of call %q", err, c.call)
			}
			if e != nil && (e.What != c.call || e.Errno != c.errno) {
				t.Fatalf("got %v, want %s: %v", e, c.call, c.errno)
			}
			if got, _ := os.ReadFile(out); string(got) != c.want {
				t.Fatalf("output %q, want %q", got, c.want)
			}
		})
	}
}

func exec(p *Program, path string) {
	p.Call("close on exec", unix.SYS_CLOSE_RANGE, Int(3), Int(^uint32(0)), Int(uint(unix.CLOSE_RANGE_CLOEXEC)))
	p.Alive()
	p.Call("exec", unix.SYS_EXECVE, p.String(path), Argv, Envp)
}

// The stub's file can be executed and read, and never be changed.
func TestStubIsSealed(t *testing.T) {
	stub, err := stubFile()
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/proc/self/fd/%d", stub)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		defer f.Close()
		if _, err = f.WriteAt([]byte{0}, 0); err == nil {
			t.Fatal("writing the stub succeeded")
		}
	}
	if !strings.Contains(err.Error(), "operation not permitted") && !strings.Contains(err.Error(), "busy") {
		t.Fatalf("got %v", err)
	}
}

// Files that a process is given may be many: none of them takes the stub's place.
func TestManyFiles(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	files := make([]uintptr, 300)
	for i := range files {
		files[i] = null.Fd()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var p Program
	exec(&p, "/bin/true")
	proc, err := Start(&p, []string{"true"}, nil, [3]uintptr{null.Fd(), 1, 2}, files, &syscall.SysProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(proc.PidFD)
	if err := proc.Wait(); err != nil {
		t.Error(err)
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(proc.Pid, &ws, 0, nil); err != nil || ws.ExitStatus() != 0 {
		t.Errorf("the process ended with %v, %v", ws, err)
	}
}

func BenchmarkStart(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for b.Loop() {
		var p Program
		p.Alive()
		p.Call("exit", unix.SYS_EXIT_GROUP, Int(0))
		proc, err := Start(&p, []string{"x"}, nil, [3]uintptr{0, 1, 2}, nil, &syscall.SysProcAttr{})
		if err != nil {
			b.Fatal(err)
		}
		proc.Wait()
		syscall.Wait4(proc.Pid, nil, 0, nil)
		unix.Close(proc.PidFD)
	}
}

// TestHearSignals has a process hear what its parent ignores.
func TestHearSignals(t *testing.T) {
	signal.Ignore(syscall.SIGHUP, syscall.SIGUSR2)
	defer signal.Reset(syscall.SIGHUP, syscall.SIGUSR2)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var p Program
	p.HearSignals()
	exec(&p, "/bin/sh")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	proc, err := Start(&p, []string{"sh", "-c", "grep SigIgn /proc/self/status"}, nil,
		[3]uintptr{w.Fd(), w.Fd(), 2}, nil, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(proc.PidFD)
	if err := proc.Wait(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if want := "SigIgn:\t0000000000000000\n"; string(got) != want {
		t.Errorf("the process says %q, want %q", got, want)
	}
	syscall.Wait4(proc.Pid, nil, 0, nil)
}
