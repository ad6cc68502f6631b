package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/worker/executor"
)

// enter opens a shell in a step that failed, until people leave it.
func (s *shell) enter(ctx context.Context, step *kiln.FailedStep) {
	s.before()
	fmt.Fprintf(s.stderr, "\n%s failed: %v\nThis is a shell where it failed. What it changes is thrown away; exit ends the build.\n", step.Name, step.Err)
	err := s.run(ctx, step)
	var exit *executor.ExitError
	if err != nil && !errors.As(err, &exit) && ctx.Err() == nil {
		warnf(s.stderr, "the step cannot be entered: %v", err)
	}
}

// run connects the shell with the terminal, which is not standard output: that may
// be a file.
func (s *shell) run(ctx context.Context, step *kiln.FailedStep) error {
	terminal, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer terminal.Close()
	before, err := term.MakeRaw(int(s.stdin.Fd()))
	if err != nil {
		return fmt.Errorf("setting up the terminal: %w", err)
	}
	defer term.Restore(int(s.stdin.Fd()), before)
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, syscall.SIGWINCH)
	defer signal.Stop(changes)
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	sizes := make(chan executor.WindowSize)
	group.Go(func() {
		for {
			if cols, rows, err := term.GetSize(int(terminal.Fd())); err == nil {
				select {
				case sizes <- executor.WindowSize{Rows: uint16(rows), Cols: uint16(cols)}:
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-changes:
			case <-ctx.Done():
				return
			}
		}
	})
	return step.Shell(ctx, s.stdin, terminal, sizes)
}
