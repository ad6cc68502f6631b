package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/worker"
	"github.com/kiln-build/kiln/worker/executor"
)

// maxQueued is how many messages wait for a process, or for the client. A client
// that sends more waits, with all its processes on the stream.
const maxQueued = 16

// maxFds bounds the descriptors of a process, each of which is answered by its end:
// as many as a process may have open by default.
const maxFds = 1024

// pace is for how long after its beginning a process is held back behind the first
// that it writes. BuildKit's clients take the messages of a stream one by one, and
// wait where a process has written into a pipe that nobody reads yet: if the reader
// is a process of the same stream, it never hears that it has begun. Other engines
// take longer than this to run a process.
const pace = 50 * time.Millisecond

// processes are those that a client runs over one stream. Each begins with the
// client's Init, which is answered by Started. What it writes follows, then the
// end of each of its files, Exit, and Done.
type processes struct {
	f      *Function
	ctx    context.Context // ends with the stream, and with the build
	out    chan *gwpb.ExecMessage
	group  sync.WaitGroup
	byName map[string]*process // those that have ended too: what is sent to them comes too late
}

// process is one of them.
type process struct {
	stdin   chan []byte // nil is none, closed is its end
	closed  bool        // whether stdin is closed
	resize  chan executor.WindowSize
	signals chan os.Signal
	done    chan struct{} // closed when it has ended

	begun chan struct{} // closed when the client knows that it has begun
	paced time.Time     // when it need not be held back any more; set before begun is closed
	wrote atomic.Bool
}

// hold waits where the process has written and has only just begun.
func (p *process) hold(ctx context.Context) {
	if !p.wrote.Swap(true) {
		return
	}
	wait := time.NewTimer(time.Until(p.paced))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
}

// execProcess runs processes in the function's containers.
func (f *Function) execProcess(ctx context.Context, stream gwpb.LLBBridge_ExecProcessServer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ps := &processes{f: f, ctx: ctx, out: make(chan *gwpb.ExecMessage, maxQueued), byName: make(map[string]*process)}
	in, ended := make(chan *gwpb.ExecMessage), make(chan error, 1)
	go func() { // ends with the stream, when this function has returned
		for {
			m, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case in <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for m := range ps.out {
			if ctx.Err() == nil && stream.Send(m) != nil {
				cancel()
			}
		}
	}()
	err := ps.serve(in, ended)
	if err != nil {
		cancel()
	}
	ps.closeAll()
	ps.group.Wait()
	close(ps.out)
	<-sent
	return err
}

// serve takes messages until the client sends no more.
func (ps *processes) serve(in <-chan *gwpb.ExecMessage, ended <-chan error) error {
	for {
		select {
		case m := <-in:
			if err := ps.take(m); err != nil {
				return err
			}
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-ps.ctx.Done():
			return context.Cause(ps.ctx)
		}
	}
}

// closeAll tells the processes that nothing more comes for them.
func (ps *processes) closeAll() {
	for _, p := range ps.byName {
		if p.stdin != nil && !p.closed {
			close(p.stdin)
		}
	}
}

// take passes a message on.
func (ps *processes) take(m *gwpb.ExecMessage) error {
	if m.ProcessID == "" {
		return fault.New(codes.InvalidArgument, "ProcessID required")
	}
	p := ps.byName[m.ProcessID]
	init := m.GetInit()
	switch {
	case init != nil && p != nil:
		return fault.New(codes.AlreadyExists, fmt.Sprintf("Process %s already exists", m.ProcessID))
	case init != nil && init.Meta == nil:
		return fault.New(codes.InvalidArgument, "process meta is required")
	case init != nil:
		ps.start(m.ProcessID, init)
		return nil
	case p == nil:
		return fault.New(codes.NotFound, fmt.Sprintf("IO for process %q not found", m.ProcessID))
	}
	switch in := m.Input.(type) {
	case *gwpb.ExecMessage_File:
		return p.feed(ps.ctx, in.File)
	case *gwpb.ExecMessage_Resize:
		deliver(ps.ctx, p, p.resize, executor.WindowSize{Rows: uint16(min(in.Resize.Rows, 1<<16-1)), Cols: uint16(min(in.Resize.Cols, 1<<16-1))})
	case *gwpb.ExecMessage_Signal:
		s, err := parseSignal(in.Signal.Name)
		if err != nil {
			return err
		}
		deliver[os.Signal](ps.ctx, p, p.signals, s)
	}
	return nil
}

// deliver waits until the process takes v, or cannot any more.
func deliver[T any](ctx context.Context, p *process, to chan<- T, v T) {
	select {
	case to <- v:
	case <-p.done:
	case <-ctx.Done():
	}
}

// feed gives the process more of its standard input.
func (p *process) feed(ctx context.Context, m *gwpb.FdMessage) error {
	if m.Fd != 0 || p.stdin == nil || p.closed {
		select {
		case <-p.done:
			return nil
		default:
			return fault.New(codes.OutOfRange, fmt.Sprintf("fd %d unavailable to write", m.Fd))
		}
	}
	if len(m.Data) > 0 {
		deliver(ctx, p, p.stdin, m.Data)
	}
	if m.EOF {
		p.closed = true
		close(p.stdin)
	}
	return nil
}

// parseSignal reads a signal's name, without "SIG" as BuildKit's clients have it.
func parseSignal(name string) (syscall.Signal, error) {
	name = strings.TrimPrefix(name, "SIG")
	if s := unix.SignalNum("SIG" + name); s != 0 {
		return s, nil
	}
	for base, first := range map[string]int{"RTMIN": 34, "RTMAX": 64} {
		if rest, ok := strings.CutPrefix(name, base); ok {
			n, err := strconv.Atoi("0" + strings.TrimLeft(rest, "+-"))
			if strings.HasPrefix(rest, "-") {
				n = -n
			}
			if n += first; err == nil && n >= 34 && n <= 64 {
				return syscall.Signal(n), nil
			}
		}
	}
	return 0, fault.New(codes.InvalidArgument, "Unknown signal "+name)
}

// start runs a process beside the others. Descriptors beyond 2 lead to nothing, as
// with BuildKit: the process does not have them, and the client hears of their end.
func (ps *processes) start(id string, init *gwpb.InitMessage) {
	p := &process{
		resize: make(chan executor.WindowSize, maxQueued), signals: make(chan os.Signal, maxQueued),
		done: make(chan struct{}), begun: make(chan struct{}),
	}
	ps.byName[id] = p
	begin := sync.OnceFunc(func() {
		ps.send(&gwpb.ExecMessage{ProcessID: id, Input: &gwpb.ExecMessage_Started{Started: &gwpb.StartedMessage{}}})
		p.paced = time.Now().Add(pace)
		close(p.begun)
	})
	run := worker.ContainerProcess{Meta: init.Meta, Security: init.Security, SecretEnv: init.Secretenv, Signals: p.signals, Started: begin}
	if init.Tty {
		run.Terminal = &executor.Terminal{Resize: p.resize}
	}
	container, refused := ps.f.containers.find(init.ContainerID)
	if len(init.Fds) > maxFds {
		refused = fault.New(codes.InvalidArgument, fmt.Sprintf("%d file descriptors: a process has %d at most", len(init.Fds), maxFds))
		init.Fds = nil
	}
	for _, fd := range init.Fds {
		switch fd {
		case 0:
			p.stdin = make(chan []byte, maxQueued)
			run.Stdin = &input{p: p, ctx: ps.ctx}
		case 1:
			run.Stdout = &output{ps, p, id, fd, container}
		case 2:
			run.Stderr = &output{ps, p, id, fd, container}
		}
	}
	ps.group.Go(func() {
		err := refused
		if err == nil {
			err = guarded(func() error { return container.Run(ps.ctx, run) })
		}
		close(p.done)
		begin()
		if p.wrote.Load() {
			p.hold(ps.ctx)
		}
		ps.exit(id, init.Fds, err)
	})
}

// exit tells the client how a process has ended.
func (ps *processes) exit(id string, fds []uint32, err error) {
	told := map[uint32]bool{0: true} // whose end is the client's to tell
	for _, fd := range fds {
		if !told[fd] {
			told[fd] = true
			ps.send(&gwpb.ExecMessage{ProcessID: id, Input: &gwpb.ExecMessage_File{File: &gwpb.FdMessage{Fd: fd, EOF: true}}})
		}
	}
	m := &gwpb.ExitMessage{}
	if err != nil {
		m.Code, m.Error = gwpb.UnknownExitStatus, fault.Status(err).Proto()
		var exit *executor.ExitError
		if errors.As(err, &exit) {
			m.Code, m.Error.Message = uint32(exit.Code), fmt.Sprintf("exit code: %d", exit.Code)
		}
	}
	ps.send(&gwpb.ExecMessage{ProcessID: id, Input: &gwpb.ExecMessage_Exit{Exit: m}})
	ps.send(&gwpb.ExecMessage{ProcessID: id, Input: &gwpb.ExecMessage_Done{Done: &gwpb.DoneMessage{}}})
}

// send gives the client a message, unless the stream ends first.
func (ps *processes) send(m *gwpb.ExecMessage) {
	select {
	case ps.out <- m:
	case <-ps.ctx.Done():
	}
}

// output is a file that a process writes to.
type output struct {
	ps        *processes
	p         *process
	id        string
	fd        uint32
	container *worker.Container
}

func (o *output) Write(b []byte) (int, error) {
	<-o.p.begun // the client takes nothing before
	o.p.hold(o.ps.ctx)
	m := &gwpb.ExecMessage{ProcessID: o.id, Input: &gwpb.ExecMessage_File{File: &gwpb.FdMessage{Fd: o.fd, Data: bytes.Clone(b)}}}
	select {
	case o.ps.out <- m:
	case <-o.container.Done(): // a client that waits for the release may take nothing more
	case <-o.ps.ctx.Done():
	}
	return len(b), nil
}

// input is a process's standard input.
type input struct {
	p    *process
	ctx  context.Context
	rest []byte
}

func (i *input) Read(b []byte) (int, error) {
	for len(i.rest) == 0 {
		select {
		case data, ok := <-i.p.stdin:
			if !ok {
				return 0, io.EOF
			}
			i.rest = data
		case <-i.p.done:
			return 0, io.EOF
		case <-i.ctx.Done():
			return 0, io.EOF
		}
	}
	n := copy(b, i.rest)
	i.rest = i.rest[n:]
	return n, nil
}
