package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
)

// instance is a running `kiln serve`.
type instance struct {
	dir string
	cmd *exec.Cmd
}

func (d *instance) addr() string { return "unix://" + filepath.Join(d.dir, "kiln.sock") }

// start starts the daemon and waits until it answers.
func (d *instance) start(flags ...string) error {
	if d.cmd != nil {
		return errors.New("the daemon runs")
	}
	log, err := os.Create(filepath.Join(d.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	args := append([]string{"serve", "--debug", "--addr", d.addr(), "--root", filepath.Join(d.dir, "root")}, flags...)
	d.cmd = exec.Command(filepath.Join(shared.bin, "kiln"), args...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := client.New(ctx, d.addr())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Wait(ctx); err != nil {
		data, _ := os.ReadFile(log.Name())
		return fmt.Errorf("waiting for the daemon: %w\n%s", err, data)
	}
	return nil
}

// stop ends the daemon, which must end well.
func (d *instance) stop() error {
	if d.cmd == nil {
		return nil
	}
	cmd := d.cmd
	d.cmd = nil
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer timer.Stop()
	return cmd.Wait()
}

// newClient starts a daemon for a test and connects BuildKit's client to it.
func newClient(t *testing.T, flags ...string) (*client.Client, *instance) {
	t.Helper()
	dir, err := os.MkdirTemp(shared.bin, "state-")
	if err != nil {
		t.Fatal(err)
	}
	d := &instance{dir: dir}
	if err := d.start(flags...); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(t.Context(), d.addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if err := d.stop(); err != nil {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Errorf("the daemon ended with %v\n%s", err, log)
		}
		if err := mountless(dir); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return c, d
}
