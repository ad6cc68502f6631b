package executor

import (
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// stdio connects a process to the caller's readers and writers. Always by pipes,
// also where the caller has a file: a descriptor of the host's terminal would let
// a step type into it.
type stdio struct {
	child   [3]int // the process's ends; -1 is /dev/null
	readers []*os.File
	stdin   *os.File
	copies  sync.WaitGroup
}

func newStdio(s *Spec) (*stdio, error) {
	p := &stdio{child: [3]int{-1, -1, -1}}
	if s.Terminal != nil {
		return p, nil
	}
	if s.Stdin != nil {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return nil, err
		}
		p.child[0], p.stdin = fds[0], pollable(fds[1], "stdin")
	}
	for i, w := range []bool{s.Stdout != nil, s.Stderr != nil} {
		if !w {
			continue
		}
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			p.close()
			return nil, err
		}
		p.child[i+1] = fds[1]
		p.readers = append(p.readers, pollable(fds[0], "output"))
	}
	return p, nil
}

// pollable makes our end of a pipe one that deadlines work on.
func pollable(fd int, name string) *os.File {
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}

// start copies until the ends of the process are closed.
func (p *stdio) start(s *Spec) {
	p.closeChild()
	if p.stdin != nil && s.Stdin != nil {
		// Not waited for: the caller's reader may never end. The pipe's close ends
		// the copy at its next write.
		go func(w *os.File, r io.Reader) {
			io.Copy(w, r)
			if s.Terminal == nil {
				w.Close()
			}
		}(p.stdin, s.Stdin)
	}
	i := 0
	for _, w := range []io.Writer{s.Stdout, s.Stderr} {
		if w == nil || i >= len(p.readers) {
			continue
		}
		r := p.readers[i]
		i++
		p.copies.Go(func() { drain(w, r) })
	}
}

// drain copies r to w until its end, or, after a deadline, as long as bytes are
// there: what the process wrote is kept although something else holds the pipe.
func drain(w io.Writer, r *os.File) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			w.Write(buf[:n])
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return
		}
	}
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	for n := 1; n > 0; {
		if raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) }) != nil {
			return
		}
		if n > 0 {
			w.Write(buf[:n])
		}
	}
}

// pipeGrace is how long a pipe may stay open once the process tree is gone: only
// something outside of the sandbox can still hold it.
const pipeGrace = time.Second

// finish waits until all that the process wrote was copied.
func (p *stdio) finish() {
	for _, r := range p.readers {
		r.SetReadDeadline(time.Now().Add(pipeGrace))
	}
	p.copies.Wait()
	p.close()
}

func (p *stdio) closeChild() {
	for _, fd := range slices.Compact(p.child[:]) { // a terminal's end is the same for all three
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	p.child = [3]int{-1, -1, -1}
}

func (p *stdio) close() {
	p.closeChild()
	for _, r := range p.readers {
		r.Close()
	}
	if p.stdin != nil {
		p.stdin.Close()
	}
}

// terminal makes our end of a terminal the place to copy from and to.
func (p *stdio) terminal(ptmx *os.File) {
	if ptmx == nil {
		return
	}
	p.readers = []*os.File{ptmx}
	p.stdin = ptmx
}
