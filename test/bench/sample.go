package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// sample is what one build took.
type sample struct {
	Seconds float64
	CPU     float64 // seconds, of all processes
	Memory  int64   // peak resident bytes of the largest process
	Written int64   // bytes that the processes caused to be written
	// Moved and Requests are what went to and from the registry, where that is
	// counted.
	Moved, Requests int64
	// Unended says that the build was stopped after these seconds.
	Unended bool `json:",omitempty"`
}

func (s sample) plus(o sample) sample {
	return sample{
		Seconds: s.Seconds + o.Seconds, CPU: s.CPU + o.CPU, Memory: max(s.Memory, o.Memory), Written: s.Written + o.Written,
		Moved: s.Moved + o.Moved, Requests: s.Requests + o.Requests,
		Unended: s.Unended || o.Unended,
	}
}

// measure runs a command and measures it with its children. The kernel counts the
// resident size of a process before it runs its program as part of the peak, so
// that the peak is never below that of this process, which must stay small: what
// needs memory here runs in drivers.
func measure(ctx context.Context, env []string, name string, args ...string) (sample, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var log tail
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	// The kernel counts what this program has in the peak of what it starts.
	debug.FreeOSMemory()
	_ = resetPeak(os.Getpid()) // where it fails, less is known: see below
	start := time.Now()
	err := cmd.Run()
	s := sample{Seconds: time.Since(start).Seconds()}
	if p := cmd.ProcessState; p != nil {
		s.CPU = (p.UserTime() + p.SystemTime()).Seconds()
		if u, ok := p.SysUsage().(*syscall.Rusage); ok {
			s.Written = u.Oublock << 9
			// What is not above that is not known.
			if own, err := procField("/proc/self/status", "VmHWM:"); err == nil && u.Maxrss > own {
				s.Memory = u.Maxrss << 10
			}
		}
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, log.buf)
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
	return s, err
}

// tail keeps the end of what is written to it.
type tail struct{ buf []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - 4000; over > 0 {
		t.buf = slices.Delete(t.buf, 0, over)
	}
	return len(p), nil
}

// usage is what a running process has used up to now, with its reaped children.
type usage struct {
	cpu     float64
	written int64
	peak    int64
}

// usageOf reads it from /proc.
func usageOf(pid int) (u usage, err error) {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	if u.written, err = procField(filepath.Join(proc, "io"), "write_bytes:"); err != nil {
		return u, err
	}
	kb, err := procField(filepath.Join(proc, "status"), "VmHWM:")
	if err != nil {
		return u, err
	}
	u.peak = kb << 10
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return u, err
	}
	// The command's name, in brackets, may hold anything; the times are fields 14 to 17.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	for _, f := range fields[11:15] {
		ticks, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return u, err
		}
		u.cpu += ticks / 100 // USER_HZ is 100 on every Linux that Go runs on
	}
	return u, nil
}

// procField gives the first number of a line of a file of /proc.
func procField(path, field string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field {
			return strconv.ParseInt(f[1], 10, 64)
		}
	}
	return 0, errors.New(path + " has no line " + field)
}

// resetPeak makes the peak of a process that of now.
func resetPeak(pid int) error {
	return os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "clear_refs"), []byte("5"), 0)
}

// median of values, which it sorts.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
