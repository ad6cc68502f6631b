package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// idleDaemon is how long a daemon that a build started stays without work.
const idleDaemon = 10 * time.Minute

// startDaemon makes sure that a process serves the state folder: it starts one that
// ends when it has had no work for idleDaemon. What that process has to say goes to
// daemon.log in the folder.
func startDaemon(ctx context.Context, root, config string, stderr io.Writer) error {
	if conn, err := dialState(ctx, root); err == nil {
		return conn.Close()
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	logPath := filepath.Join(root, "daemon.log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("starting a daemon: %w", err)
	}
	defer log.Close()
	args := []string{"serve", "--root", root, "--idle-timeout", idleDaemon.String(), "--addr", stateOnly}
	if config != "" {
		if config, err = filepath.Abs(config); err != nil { // the daemon is in another folder
			return err
		}
		args = append(args, "--config", config)
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for the build
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting a daemon: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	told := time.NewTimer(patience)
	defer told.Stop()
	for {
		if conn, err := dialState(ctx, root); err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-ended:
			said, _ := os.ReadFile(logPath)
			return errors.Join(fmt.Errorf("the daemon that was started ended: %w", err), errors.New(string(lastLines(said))))
		case <-told.C:
			fmt.Fprintf(stderr, "kiln: waiting for the daemon that was started; it writes to %s\n", logPath)
		case <-time.After(2 * time.Millisecond):
		}
	}
}
