// Package userns lets kiln work without root: the program runs itself again in a
// user namespace, in which it is root and owns what the user owns.
//
// With the programs newuidmap and newgidmap and a range of subordinate ids
// (/etc/subuid, /etc/subgid) steps can use other users than root as well; without
// them root is the only one.
package userns

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/worker/executor/internal/launch"
)

// Enter runs the program again in a user namespace, with the same arguments,
// environment and files, where it is not root already. Where it did that, done is
// true and code is what the program ended with: the caller exits with it. It is
// called before anything else is started or opened.
func Enter() (done bool, code int, err error) {
	if os.Geteuid() == 0 {
		return false, 0, nil
	}
	ids, err := findMappings()
	if err != nil {
		return false, 0, fmt.Errorf("entering a user namespace: %w", err)
	}
	code, err = run(ids)
	if err != nil {
		return false, 0, fmt.Errorf("entering a user namespace: %w", err)
	}
	return true, code, nil
}

// run starts this program in the namespace, and stands in for it until it ends.
func run(ids mappings) (int, error) {
	runtime.LockOSThread() // the program is to die with this thread
	defer runtime.UnlockOSThread()

	self, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(self)
	var gate [2]int
	if err := unix.Pipe2(gate[:], unix.O_CLOEXEC); err != nil {
		return 0, err
	}
	defer unix.Close(gate[0])

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH)
	defer signal.Stop(signals)

	// The program must not start before it is root: it would lose what a root has.
	p := &launch.Program{}
	p.Call("closing files", unix.SYS_CLOSE_RANGE, launch.Int(3), launch.Int(^uint32(0)), launch.Int(uint32(unix.CLOSE_RANGE_CLOEXEC)))
	p.Call("waiting for ids", unix.SYS_READ, launch.File(1), p.Data(make([]byte, 8)), launch.Int(1))
	p.Alive()
	p.Call("running kiln again", unix.SYS_EXECVEAT, launch.File(0), p.String(""), launch.Argv, launch.Envp, launch.Int(unix.AT_EMPTY_PATH))
	proc, err := launch.Start(p, os.Args, os.Environ(), [3]uintptr{0, 1, 2}, []uintptr{uintptr(self), uintptr(gate[0])}, &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	})
	if err != nil {
		unix.Close(gate[1])
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
			err = fmt.Errorf("%w (this machine does not let its users make user namespaces: see the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns)", err)
		}
		return 0, err
	}
	defer unix.Close(proc.PidFD)
	err = ids.apply(proc.Pid)
	if err == nil {
		_, err = unix.Write(gate[1], []byte{1})
	} else {
		unix.PidfdSendSignal(proc.PidFD, unix.SIGKILL, nil, 0)
	}
	unix.Close(gate[1])
	if werr := proc.Wait(); err == nil {
		err = werr
	}
	stop := make(chan struct{})
	go forward(proc.PidFD, signals, stop)
	ws := wait(proc.Pid)
	close(stop)
	if err != nil {
		return 0, err
	}
	if ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), nil
}

// forward passes signals on. Those that a terminal sends to all of its foreground
// reach the program without us.
func forward(pidfd int, signals <-chan os.Signal, stop <-chan struct{}) {
	_, err := unix.IoctlGetTermios(0, unix.TCGETS)
	terminal := err == nil
	for {
		select {
		case <-stop:
			return
		case s := <-signals:
			switch {
			case terminal && (s == unix.SIGINT || s == unix.SIGQUIT || s == unix.SIGWINCH || s == unix.SIGHUP):
			default:
				unix.PidfdSendSignal(pidfd, s.(syscall.Signal), nil, 0)
			}
		}
	}
}

func wait(pid int) unix.WaitStatus {
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &ws, 0, nil); !errors.Is(err, unix.EINTR) {
			return ws
		}
	}
}

// mappings are the ids of the namespace.
type mappings struct {
	uid, gid   int
	uids, gids []span // subordinate ids; none is root alone
}

// A span is a range of ids of the host.
type span struct{ start, count uint64 }

// findMappings reads what the machine grants this user.
func findMappings() (mappings, error) {
	m := mappings{uid: os.Geteuid(), gid: os.Getegid()}
	for _, program := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(program); err != nil {
			return m, nil
		}
	}
	names := []string{strconv.Itoa(m.uid)}
	if u, err := user.LookupId(names[0]); err == nil {
		names = append(names, u.Username)
	}
	uids, err := subordinate("/etc/subuid", names)
	if err != nil {
		return m, err
	}
	gids, err := subordinate("/etc/subgid", names)
	if err != nil {
		return m, err
	}
	if len(uids) > 0 && len(gids) > 0 {
		m.uids, m.gids = uids, gids
	}
	return m, nil
}

func subordinate(file string, names []string) ([]span, error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []span
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		part := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(part) != 3 || part[0] != names[0] && part[0] != names[len(names)-1] {
			continue
		}
		start, err1 := strconv.ParseUint(part[1], 10, 32)
		count, err2 := strconv.ParseUint(part[2], 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
		if count > 0 {
			list = append(list, span{start, count})
		}
	}
	return list, lines.Err()
}

// apply gives the process pid its ids.
func (m mappings) apply(pid int) error {
	if len(m.uids) == 0 {
		// A user may map itself, once it has given up the right to change groups.
		dir := fmt.Sprintf("/proc/%d/", pid)
		return errors.Join(
			os.WriteFile(dir+"uid_map", fmt.Appendf(nil, "0 %d 1\n", m.uid), 0),
			os.WriteFile(dir+"setgroups", []byte("deny"), 0),
			os.WriteFile(dir+"gid_map", fmt.Appendf(nil, "0 %d 1\n", m.gid), 0))
	}
	return errors.Join(mapIDs("newuidmap", pid, m.uid, m.uids), mapIDs("newgidmap", pid, m.gid, m.gids))
}

func mapIDs(program string, pid, own int, spans []span) error {
	args := []string{strconv.Itoa(pid), "0", strconv.Itoa(own), "1"}
	inside := uint64(1)
	for _, s := range spans {
		args = append(args, strconv.FormatUint(inside, 10), strconv.FormatUint(s.start, 10), strconv.FormatUint(s.count, 10))
		inside += s.count
	}
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("running %s: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	return nil
}
