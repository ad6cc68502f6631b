// Package executor runs a process in a sandbox of kiln's own: namespaces, an
// overlay root, capabilities, seccomp and cgroups.
//
// A sandbox (box) is set up by a thread of kiln's own that leaves the host's
// namespaces for new ones, mounts everything there and forks. So no mount is ever
// made in the host's mount namespace, and a kiln that is killed leaves none. What
// only the new process can do (/proc, pivot_root, dropping privileges) is a list
// of system calls that a stub of a few hundred bytes makes before it becomes the
// step's program (package launch): no copy of kiln itself is ever executed inside,
// and /proc/self/exe never leads to its file.
//
// Paths of a root are resolved by openat2 inside that root, and mounted on by
// descriptor, as an image may hold any link (rootDir). Mount points that have to
// be made are stubs, and go when the process has ended (stub).
//
// The network is the host's, unless NetworkNone is asked for: kiln makes no
// bridge, as BuildKit does not where no CNI is configured. A step then reaches
// what listens on the host's loopback and abstract sockets, too.
//
// It needs Linux 5.14 or later.
package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kiln-build/kiln/worker/usage"
)

// Spec is a process and all that it sees. The zero value of a field is what
// docker does by default.
type Spec struct {
	ID      string // names the cgroup; unique among what runs
	Root    Overlay
	Mounts  []Mount // over the root, in this order
	Args    []string
	Env     []string
	Cwd     string // made in the root if it is not there
	User    string // "name", "uid", "name:group", "uid:gid"; empty is root. Looked up in the root's own files.
	Network Network
	// Proxy is the only way out of a network that has a loopback device alone; nil
	// leaves it to Network.
	Proxy *Proxy
	// Insecure gives every capability and no seccomp filter, as BuildKit's security mode does.
	Insecure   bool
	Hostname   string
	ExtraHosts []HostIP
	Ulimits    []Ulimit
	Resources  Resources
	// Devices are nodes of /dev besides those that every process has.
	Devices []Device
	// Groups are groups that the process is in besides those of its user.
	Groups []uint32
	// Hooks are programs of the host that prepare the sandbox. Only OCI runtimes run
	// them; other executors refuse a process that has any.
	Hooks *specs.Hooks
	// CgroupParent is the cgroup below which the process gets its own, made if it
	// is not there; empty is that of Options.
	CgroupParent string
	// StubsRecursive removes, after the run, the empty parents too that mount points made.
	StubsRecursive bool

	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Terminal       *Terminal        // nil is no terminal
	Signals        <-chan os.Signal // sent to the process
	// Started is called when the process runs, if not nil.
	Started func(pid int)
	// Measure is how what the process uses is measured; nil does not.
	Measure *Measure
	// Shared says that others may enter the sandbox while the process runs (Enterer).
	Shared bool
}

// Measure has what a process and its descendants use measured while it runs.
type Measure struct {
	// Fully measures what takes something to be measured: on a machine with the older
	// trees of cgroups a process is moved into those that count.
	Fully bool
	// Used is told once, when a process that has begun has ended.
	Used func(*usage.Samples)
}

// Overlay is a stack of layer folders in overlayfs form.
type Overlay struct {
	Lower    []string // bottom first; may be empty
	Upper    string   // what the step writes lands here; empty is a read-only root
	Work     string   // beside Upper, for overlayfs's own use; new for each run, and the caller's to remove
	ReadOnly bool
}

// Mount is a file system, folder or file that a process sees at Dest. One of
// Overlay, Source and Tmpfs is set. A Dest that is not there is made, and gone
// from the upper folder afterwards.
type Mount struct {
	Dest     string
	Overlay  *Overlay
	Selector string // of Overlay or Source: the path inside it; links in it stay inside it
	Source   string // a folder, file or socket of the host
	Tmpfs    *Tmpfs
	ReadOnly bool
}

// Tmpfs is a file system in memory.
type Tmpfs struct {
	Size int64 // bytes; 0 is the kernel's default
	Mode os.FileMode
}

// Network says which network a process sees.
type Network int

const (
	// NetworkDefault is a sandboxed network that reaches outside where the host can give one.
	NetworkDefault Network = iota
	// NetworkHost is the host's.
	NetworkHost
	// NetworkNone is a loopback device alone.
	NetworkNone
)

// Proxy is what a process finds as its proxy for HTTP. The socket is in the process's
// own network; whoever answers on it need not be.
type Proxy struct {
	// Serve is called with the socket, on a goroutine of its own, before the process is
	// made. Closing it is the caller's affair.
	Serve func(net.Listener)
	// Certificate is that of an authority, as PEM, which stands in the root's lists of
	// authorities while the process runs.
	Certificate []byte
}

// HostIP is a line of /etc/hosts.
type HostIP struct {
	Host string
	IP   net.IP
}

// Ulimit is a limit by its name in docker's terms, "nofile" for one. -1 is unlimited.
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

// Resources limit a process tree by its cgroup; zero is no limit.
type Resources struct {
	Memory, MemorySwap int64 // bytes
	CPUShares          uint64
	CPUPeriod          uint64 // microseconds
	CPUQuota           int64  // microseconds
	CPUSetCPUs         string
	CPUSetMems         string
	PIDs               int64
	ShmSize            int64 // bytes of /dev/shm; 0 is 64 MiB
}

// Device is a device that a process may use.
type Device struct {
	Path         string // of its node in the sandbox, below /dev
	HostPath     string // of the host's node, which is bound where none can be made
	Block        bool
	Major, Minor uint32
	Mode         os.FileMode
	UID, GID     *uint32 // nil is the process's user's
	Access       string  // of "rwm"
}

// Terminal is the terminal that a process gets.
type Terminal struct {
	Resize <-chan WindowSize
}

// WindowSize is a terminal's size in characters.
type WindowSize struct{ Rows, Cols uint16 }

// ExitError is a process that ended with a code other than 0, or by a signal.
type ExitError struct {
	Code   int  // 128+n after signal n
	OOM    bool // the kernel killed it, or one of its children, for memory
	Signal os.Signal
}

func (e *ExitError) Error() string {
	switch {
	case e.OOM:
		return fmt.Sprintf("process ran out of memory: exit code %d", e.Code)
	case e.Signal != nil:
		return fmt.Sprintf("process was ended by signal %q: exit code %d", e.Signal, e.Code)
	}
	return fmt.Sprintf("process ended with exit code %d", e.Code)
}

// Executor runs processes. It is safe for concurrent use.
type Executor interface {
	// Run runs a process to its end. Nothing of it is left afterwards: no process,
	// mount, namespace or cgroup. A code other than 0 is an *ExitError; when ctx
	// ends first the process tree is killed and ctx's cause is the error.
	Run(ctx context.Context, s Spec) error
}

// Enterer is what an Executor is besides, where further processes can be run in a
// sandbox that there is.
type Enterer interface {
	// Enter runs a process in the sandbox of the process whose Spec has the ID and is
	// Shared, as Run does. What the sandbox is made of is that process's: of s count
	// its ID, arguments, environment, working folder (which must be there), user,
	// privileges and standard files. It is killed when the first process ends.
	Enter(ctx context.Context, id string, s Spec) error
}

// ErrNoSandbox is the error of Enter where no such sandbox is, any more or yet.
var ErrNoSandbox = errors.New("the first process of the container is not running")

// Viewer is what an Executor is besides, where the host can look into what steps see.
type Viewer interface {
	// View opens what a process sees of m, to be read only: a folder, or the one file
	// that is mounted. What running processes have written there is in it.
	View(m Mount) (*os.File, error)
}

// Options are the settings of kiln's own executor; the zero value works.
type Options struct {
	// Dir is a folder for sockets, resolv.conf and the like.
	Dir string
	// CgroupParent is the cgroup below which steps get theirs.
	CgroupParent string
	// DNS overrides the host's resolv.conf where set.
	Nameservers, SearchDomains, DNSOptions []string
	// Grace is how long a process has between SIGTERM and SIGKILL at cancellation; 0 kills at once.
	Grace time.Duration
}
