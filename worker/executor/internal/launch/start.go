package launch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// The descriptors that the stub is born with. Those of Start's files follow.
const (
	//lint:ignore U1000 the stub holds the same number
	programFD = 3
	// StatusFD is the pipe on which the stub reports. A program writes one byte to
	// it (Alive) when nothing but the exec is left.
	StatusFD  = 4
	firstFile = 5
)

// File is the descriptor number, in the stub, of Start's file i.
func File(i int) Arg { return Int(firstFile + i) }

// Process is a process that was started, and may still be the stub.
type Process struct {
	Pid    int
	PidFD  int // for pidfd_send_signal
	status *os.File
	calls  []call
}

// Alive appends the call that tells the parent that only the exec is left. It
// kills the stub when there is no parent any more to read it.
func (p *Program) Alive() {
	p.Call("reporting to kiln", unix.SYS_WRITE, Int(StatusFD), p.Data([]byte{1}), Int(1))
}

// Start runs p in a new process with args and env for it to exec with. The new
// process has std as descriptors 0 to 2, and files as File(0) and so on. The
// thread must stay locked to the caller until the process has ended where attr
// has a Pdeathsig.
func Start(p *Program, args, env []string, std [3]uintptr, files []uintptr, attr *syscall.SysProcAttr) (*Process, error) {
	stub, err := stubFile()
	if err != nil {
		return nil, err
	}
	image, err := p.encode()
	if err != nil {
		return nil, err
	}
	prog, err := unix.MemfdCreate("kiln-program", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making the program's file in memory: %w", err)
	}
	defer unix.Close(prog)
	if _, err := unix.Write(prog, image); err != nil {
		return nil, fmt.Errorf("writing the program: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()

	fds := append([]uintptr{std[0], std[1], std[2], uintptr(prog), w.Fd()}, files...)
	// The stub is one of the child's files: any other descriptor of it may have
	// been overwritten when the files got their numbers.
	fds = append(fds, stub)
	path := fmt.Sprintf("/proc/self/fd/%d", len(fds)-1)
	pidfd := -1
	attr.PidFD = &pidfd
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{Env: env, Files: fds, Sys: attr})
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("starting a process: %w", err)
	}
	return &Process{Pid: pid, PidFD: pidfd, status: r, calls: p.calls}, nil
}

// ErrDied is a stub that was killed before it was through.
var ErrDied = errors.New("killed while it was being set up")

// Wait waits until the process has been exec'ed, or its program has failed.
func (c *Process) Wait() error {
	defer c.status.Close()
	var buf [32]byte
	n := 0
	for n < len(buf) {
		m, err := c.status.Read(buf[n:])
		n += m
		if m == 0 || err != nil {
			break
		}
	}
	switch {
	case n == 1:
		return nil
	case n < 16:
		return ErrDied
	}
	report := buf[n-16 : n]
	i := int(binary.NativeEndian.Uint64(report)-base-headerSize) / callSize
	errno := syscall.Errno(binary.NativeEndian.Uint64(report[8:]))
	if i < 0 || i >= len(c.calls) {
		return ErrDied
	}
	return &Error{What: c.calls[i].what, Errno: errno}
}

// Error is a call of a program that failed.
type Error struct {
	What  string
	Errno syscall.Errno
}

func (e *Error) Error() string { return e.What + ": " + e.Errno.Error() }

// Unwrap gives the Errno.
func (e *Error) Unwrap() error { return e.Errno }
