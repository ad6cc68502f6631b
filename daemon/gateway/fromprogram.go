package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	types "github.com/moby/buildkit/api/types"

	"github.com/kiln-build/kiln/frontend"
)

// ProgramPrefix is what stands before a program's path in the name of a frontend.
const ProgramPrefix = "exec:"

// FromProgram is the frontend that a program of this machine is. The program speaks
// the gateway API over its standard input and output, as one in an image does, and
// is no more restricted than whoever starts it.
type FromProgram struct {
	Path    string
	Workers []*types.WorkerRecord
}

var _ frontend.Frontend = FromProgram{}

// ProgramOf gives the path in the name of such a frontend.
func ProgramOf(name string) (path string, ok bool) { return strings.CutPrefix(name, ProgramPrefix) }

// Name is what the frontend is called.
func (p FromProgram) Name() string { return ProgramPrefix + p.Path }

// Build runs the program.
func (p FromProgram) Build(ctx context.Context, req frontend.Request, b frontend.Bridge) (*frontend.Result, error) {
	full, err := exec.LookPath(p.Path)
	if err != nil {
		return nil, fmt.Errorf("the frontend %s: %w", p.Path, err)
	}
	inputs, err := definitions(req.Inputs)
	if err != nil {
		return nil, err
	}
	env, err := environment(p.Workers, req)
	if err != nil {
		return nil, err
	}
	f := NewFunction(inputs, p.Workers)
	return f.runIn(ctx, req, b, func(ctx context.Context, conn net.Conn, stderr io.Writer) error {
		return runProgram(ctx, full, env, conn, stderr)
	})
}

// outputGrace is how long the program's output may stay open once it has ended.
const outputGrace = time.Second

// runProgram runs a program on a thread that lives as long as it: the kernel ends
// it with the thread that started it, so that it never outlives kiln.
func runProgram(ctx context.Context, path string, env []string, conn net.Conn, stderr io.Writer) error {
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd := exec.CommandContext(ctx, path)
		cmd.Env = append(os.Environ(), env...)
		cmd.Stdout, cmd.Stderr = conn, stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		cmd.WaitDelay = outputGrace
		stdin, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			ended <- err
			return
		}
		go func() { // ends with the connection, which runIn closes
			io.Copy(stdin, conn)
			stdin.Close()
		}()
		err = cmd.Wait()
		if cause := context.Cause(ctx); cause != nil && err != nil {
			err = errors.Join(cause, err)
		}
		ended <- err
	}()
	return <-ended
}
