package pool

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// asNobody runs fn on a thread of its own with the rights of another user. The
// thread ends with the goroutine, and its rights with it.
func asNobody(done chan<- error, fn func() error) {
	runtime.LockOSThread()
	for _, call := range []func() error{
		func() error { return unix.Setfsgid(65534) },
		// A change of the effective id drops CAP_CHOWN too; raw, for this thread only.
		func() error {
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0)); errno != 0 {
				return errno
			}
			return nil
		},
	} {
		if err := call(); err != nil {
			done <- err
			return
		}
	}
	done <- fn()
}
