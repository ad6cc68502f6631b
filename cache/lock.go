package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a process that waits for the folder asks: flock(2)
// itself could not be interrupted by a context.
const lockPoll = 20 * time.Millisecond

// takeLock takes the file lock of a state folder and writes into it who has it:
// the process, its command line and the boot id, a line each. unclean says that
// the last owner's note is still there: it did not end in order.
func takeLock(ctx context.Context, dir, boot string, waiting func(pid int, command string)) (f *os.File, unclean bool, err error) {
	f, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	for told := 0; ; {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, false, fmt.Errorf("locking it: %w", err)
		}
		pid, command := readOwner(f)
		if waiting != nil && pid != 0 && pid != told {
			told = pid
			waiting(pid, command)
		}
		select {
		case <-ctx.Done():
			return nil, false, fmt.Errorf("waiting for process %d (%s), which has it: %w", pid, command, context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
	pid, _ := readOwner(f)
	note := fmt.Sprintf("%d\n%s\n%s\n", os.Getpid(), strings.ReplaceAll(strings.Join(os.Args, " "), "\n", " "), boot)
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(note), 0)
	}
	return f, pid != 0, err
}

// readOwner reads who has the lock; 0 is nobody known.
func readOwner(f *os.File) (pid int, command string) {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 64<<10))
	if err != nil {
		return 0, ""
	}
	lines := strings.SplitN(string(b), "\n", 3)
	if len(lines) < 2 {
		return 0, ""
	}
	pid, err = strconv.Atoi(lines[0])
	if err != nil {
		return 0, ""
	}
	return pid, lines[1]
}

// bootID identifies this start of the machine.
func (c *Cache) bootID() (string, error) {
	if c.opt.bootID != "" {
		return c.opt.bootID, nil
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
