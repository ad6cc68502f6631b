package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// daemon is the process that a tool keeps running; the zero value is none.
type daemon struct{ cmd *exec.Cmd }

// start starts it, with its output in a file, and waits until it answers.
func (d *daemon) start(ctx context.Context, cmd *exec.Cmd, logFile string, answers func() bool) error {
	log, err := os.Create(logFile)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", filepath.Base(cmd.Path), err)
	}
	d.cmd = cmd
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		if answers() {
			return nil
		}
	}
	return fmt.Errorf("%s did not come up in a minute; see %s", filepath.Base(cmd.Path), logFile)
}

// stop ends it if it runs.
func (d *daemon) stop() error {
	if d.cmd == nil {
		return nil
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { d.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		d.cmd.Process.Kill()
		<-done
	}
	d.cmd = nil
	return nil
}

// measure adds what the daemon used, if there is one, to what its clients did. The
// peak is the daemon's: a client beside it is small.
func (d *daemon) measure(client func() (sample, error)) (sample, error) {
	if d.cmd == nil {
		return client()
	}
	pid := d.cmd.Process.Pid
	if err := resetPeak(pid); err != nil {
		return sample{}, err
	}
	before, err := usageOf(pid)
	if err != nil {
		return sample{}, err
	}
	s, err := client()
	if err != nil {
		return s, err
	}
	after, err := usageOf(pid)
	s.CPU += after.cpu - before.cpu
	s.Written += after.written - before.written
	s.Memory = max(s.Memory, after.peak)
	return s, err
}
