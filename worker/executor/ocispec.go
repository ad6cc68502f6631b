package executor

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/worker/executor/internal/seccomp"
)

// ociVersion is the oldest that has all we say: older runtimes refuse newer ones.
const ociVersion = "1.0.2"

// ociProcess says in the words of the OCI runtime specification which process the
// native executor makes of a spec.
func ociProcess(s *Spec, u user, env []string) (*specs.Process, error) {
	cwd := s.Cwd
	if cwd == "" {
		cwd = "/"
	}
	umask := uint32(0o022)
	p := &specs.Process{
		Terminal:     s.Terminal != nil,
		User:         specs.User{UID: u.uid, GID: u.gid, AdditionalGids: append(u.groups, s.Groups...), Umask: &umask},
		Args:         s.Args,
		Env:          env,
		Cwd:          path.Join("/", cwd),
		Capabilities: &specs.LinuxCapabilities{Bounding: seccomp.DefaultCaps, Effective: seccomp.DefaultCaps, Permitted: seccomp.DefaultCaps},
	}
	if s.Insecure {
		all := allCaps()
		p.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all, Inheritable: all, Ambient: all}
	}
	for _, l := range s.Ulimits {
		if _, ok := rlimits[l.Name]; !ok {
			return nil, fmt.Errorf("setting ulimit %q: there is no such limit", l.Name)
		}
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(l.Name), Soft: uint64(l.Soft), Hard: uint64(l.Hard)})
	}
	return p, nil
}

// ociSpec says the same of the process and all that it sees.
func ociSpec(s *Spec, u user, env []string, root string, binds []specs.Mount) (*specs.Spec, error) {
	process, err := ociProcess(s, u, env)
	if err != nil {
		return nil, err
	}
	hostname := s.Hostname
	if hostname == "" {
		hostname = defaultHostname
	}
	o := &specs.Spec{
		Version:  ociVersion,
		Root:     &specs.Root{Path: root, Readonly: s.Root.ReadOnly},
		Process:  process,
		Hostname: hostname,
		Mounts:   append(ociMounts(s), binds...),
		Hooks:    s.Hooks,
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			},
			Resources: ociResources(s),
			Devices:   ociGiven(s.Devices, u),
		},
	}
	switch {
	case s.Proxy != nil:
		// The one that the runtime is started in, named so that those who enter join it.
		o.Linux.Namespaces = append(o.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/proc/self/ns/net"})
	case s.Network == NetworkNone:
		o.Linux.Namespaces = append(o.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	if s.Insecure {
		more, err := ociDevices()
		o.Linux.Devices = append(more, o.Linux.Devices...)
		return o, err
	}
	for _, m := range maskedProc {
		o.Linux.MaskedPaths = append(o.Linux.MaskedPaths, "/proc/"+m.name)
	}
	for _, m := range maskedSys() {
		o.Linux.MaskedPaths = append(o.Linux.MaskedPaths, "/sys/"+m)
	}
	for _, name := range readOnlyProc {
		o.Linux.ReadonlyPaths = append(o.Linux.ReadonlyPaths, "/proc/"+name)
	}
	o.Linux.Seccomp, err = seccomp.Profile()
	return o, err
}

func ociMounts(s *Spec) []specs.Mount {
	hardened := []string{"nosuid", "noexec", "nodev"}
	access := "ro"
	if s.Insecure {
		access = "rw"
	}
	shm := s.Resources.ShmSize
	if shm <= 0 {
		shm = defaultShm
	}
	with := func(o ...string) []string { return slices.Concat(hardened, o) }
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: hardened},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: with("mode=1777", fmt.Sprintf("size=%d", shm))},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: hardened},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: with(access)},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: with(access)},
	}
}

// ociDevices are the nodes of /dev that a step with every privilege has besides
// those that runtimes make anyway.
func ociDevices() ([]specs.LinuxDevice, error) {
	userns, err := inUserNamespace()
	if err != nil {
		return nil, err
	}
	var out []specs.LinuxDevice
	for _, d := range allInsecureDevices() {
		name := "/dev/" + d.name
		if userns {
			// No device can be made there, only bound from the host.
			if _, err := os.Stat(name); err != nil {
				continue
			}
		}
		kind := "c"
		if d.kind == unix.S_IFBLK {
			kind = "b"
		}
		out = append(out, specs.LinuxDevice{Path: name, Type: kind, Major: int64(d.major), Minor: int64(d.minor)})
	}
	return out, nil
}

// ociGiven are the nodes of the devices that a process was given.
func ociGiven(given []Device, u user) []specs.LinuxDevice {
	var out []specs.LinuxDevice
	for _, d := range given {
		node := specs.LinuxDevice{Path: d.Path, Type: "c", Major: int64(d.Major), Minor: int64(d.Minor), UID: d.UID, GID: d.GID}
		if d.Block {
			node.Type = "b"
		}
		if node.UID == nil {
			node.UID = &u.uid
		}
		if node.GID == nil {
			node.GID = &u.gid
		}
		mode := d.Mode
		node.FileMode = &mode
		out = append(out, node)
	}
	return out
}

func ociResources(s *Spec) *specs.LinuxResources {
	r, l := &specs.LinuxResources{}, s.Resources
	r.Devices = []specs.LinuxDeviceCgroup{{Allow: s.Insecure, Access: "rwm"}}
	for i, d := range ociGiven(s.Devices, user{}) {
		r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: s.Devices[i].Access})
	}
	if l.Memory > 0 || l.MemorySwap != 0 {
		r.Memory = &specs.LinuxMemory{}
		if l.Memory > 0 {
			r.Memory.Limit = &l.Memory
		}
		if l.MemorySwap != 0 {
			r.Memory.Swap = &l.MemorySwap
		}
	}
	cpu := specs.LinuxCPU{Cpus: l.CPUSetCPUs, Mems: l.CPUSetMems}
	if l.CPUShares > 0 {
		cpu.Shares = &l.CPUShares
	}
	if l.CPUPeriod > 0 {
		cpu.Period = &l.CPUPeriod
	}
	if l.CPUQuota != 0 {
		cpu.Quota = &l.CPUQuota
	}
	if cpu != (specs.LinuxCPU{}) {
		r.CPU = &cpu
	}
	if l.PIDs > 0 {
		r.Pids = &specs.LinuxPids{Limit: &l.PIDs}
	}
	return r
}

// capNames are the kernel's capabilities by number.
var capNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
}

// allCaps names the capabilities that this process may give away.
func allCaps() []string {
	var list []string
	for i, name := range capNames {
		if on, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0); err == nil && on == 1 {
			list = append(list, "CAP_"+name)
		}
	}
	return list
}
