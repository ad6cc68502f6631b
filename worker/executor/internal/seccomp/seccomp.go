// Package seccomp compiles docker's default seccomp profile to the BPF program
// that the kernel runs at each system call of a step.
//
// The result decides as the program that runc makes of the profile, by way of
// libseccomp: a call that the profile does not allow fails with EPERM, one that
// the profile is too old to know with ENOSYS, so that programs fall back. It is
// built as a search tree over the numbers of the calls, which takes a tenth of
// the instructions of a list: the kernel runs it for each number when a step
// starts, to find what it need not ask it again.
package seccomp

import (
	_ "embed" // the numbers of the system calls
	"encoding/binary"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	profiles "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// DefaultCaps are the capabilities of a step, on which the profile depends.
var DefaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// Profile is docker's default profile for a step on this machine.
func Profile() (*specs.LinuxSeccomp, error) {
	return profiles.GetDefaultProfile(&specs.Spec{Process: &specs.Process{
		Capabilities: &specs.LinuxCapabilities{Bounding: DefaultCaps},
	}})
}

// Default is the program for Profile, as an array of struct sock_filter. It is
// compiled once.
var Default = sync.OnceValues(func() ([]byte, error) {
	p, err := Profile()
	if err != nil {
		return nil, fmt.Errorf("reading the seccomp profile: %w", err)
	}
	code, err := compile(p)
	if err != nil {
		return nil, fmt.Errorf("compiling the seccomp profile: %w", err)
	}
	var b []byte
	for _, in := range code {
		b = binary.NativeEndian.AppendUint16(b, in.op)
		b = append(b, in.jt, in.jf)
		b = binary.NativeEndian.AppendUint32(b, in.k)
	}
	return b, nil
})

// An abi is one of the ways in which a program can call this kernel: its number
// in the audit system, and its numbers for calls.
type abi struct {
	name  specs.Arch
	audit uint32
	bit   uint32 // set in all its calls' numbers
	calls map[string]uint32
}

// What Linux calls the ABIs.
const (
	auditX86_64  = 0xc000003e
	auditX86     = 0x40000003
	auditAARCH64 = 0xc00000b7
	auditARM     = 0x40000028
	x32Bit       = 0x40000000
)

//go:generate ./syscalls.sh

var (
	//go:embed syscalls_x86_64.txt
	callsX86_64 string
	//go:embed syscalls_x86.txt
	callsX86 string
	//go:embed syscalls_x32.txt
	callsX32 string
	//go:embed syscalls_aarch64.txt
	callsAARCH64 string
	//go:embed syscalls_arm.txt
	callsARM string
)

// abis lists the ABIs of this machine.
func abis() []abi {
	if runtime.GOARCH == "arm64" {
		return []abi{
			{specs.ArchAARCH64, auditAARCH64, 0, parse(callsAARCH64, 0)},
			{specs.ArchARM, auditARM, 0, parse(callsARM, 0)},
		}
	}
	return []abi{
		{specs.ArchX86_64, auditX86_64, 0, parse(callsX86_64, 0)},
		{specs.ArchX32, auditX86_64, x32Bit, parse(callsX32, x32Bit)},
		{specs.ArchX86, auditX86, 0, parse(callsX86, 0)},
	}
}

// parse reads lines of a name and a number.
func parse(table string, bit uint32) map[string]uint32 {
	m := make(map[string]uint32, 512)
	for line := range strings.Lines(table) {
		name, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			panic("seccomp: the table of calls has a line " + strconv.Quote(line))
		}
		m[name] = uint32(n) | bit
	}
	return m
}

// compile makes the whole program: the tree of the ABI that the call came by.
func compile(p *specs.LinuxSeccomp) ([]inst, error) {
	trees := map[uint32][]verdict{}
	for _, a := range abis() {
		if !slices.Contains(p.Architectures, a.name) {
			continue
		}
		v, err := verdicts(p, a)
		if err != nil {
			return nil, err
		}
		trees[a.audit] = append(trees[a.audit], v...)
	}
	if len(trees) == 0 {
		return nil, fmt.Errorf("the profile has nothing for %s", runtime.GOARCH)
	}
	code := []inst{{op: opReturn, k: unix.SECCOMP_RET_KILL_PROCESS}} // any other ABI
	for _, audit := range slices.Backward(slices.Sorted(maps.Keys(trees))) {
		t, err := search(trees[audit])
		if err != nil {
			return nil, err
		}
		t = append([]inst{{op: opLoad, k: offNumber}}, t...)
		code = branch(opEqual, audit, t, code)
	}
	return append([]inst{{op: opLoad, k: offAudit}}, code...), nil
}

// A verdict is what is decided on the calls numbered from first to the next
// verdict's: a program that ends in a return.
type verdict struct {
	first uint32
	code  []inst
}

// verdicts works out what the profile says of each number of an ABI.
func verdicts(p *specs.LinuxSeccomp, a abi) ([]verdict, error) {
	other, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	rules, names := map[uint32][]specs.LinuxSyscall{}, map[uint32]string{}
	for _, r := range p.Syscalls {
		for _, name := range r.Names {
			if n, ok := a.calls[name]; ok {
				rules[n], names[n] = append(rules[n], r), name
			}
		}
	}
	// Calls above the last that the profile names were not known to it.
	known := a.bit
	for n := range rules {
		if n&^a.bit < armPrivate {
			known = max(known, n)
		}
	}
	deny := []inst{{op: opReturn, k: other}}
	nosys := []inst{{op: opReturn, k: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}}
	list := []verdict{{a.bit, deny}}
	add := func(v verdict) {
		last := &list[len(list)-1]
		switch {
		case v.first == last.first:
			last.code = v.code
		case !slices.Equal(v.code, last.code):
			list = append(list, v)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(rules)) {
		code, err := decide(rules[n], names[n], other)
		if err != nil {
			return nil, fmt.Errorf("call %d of %s: %w", n, a.name, err)
		}
		add(verdict{n, code})
		if _, next := rules[n+1]; !next {
			if n < known {
				add(verdict{n + 1, deny})
			} else {
				add(verdict{n + 1, nosys})
			}
		}
	}
	return list, nil
}

// armPrivate is where the calls begin that arm has for itself.
const armPrivate = 0xf0000

// action gives the kernel's word for what the profile wants done.
func action(act specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	switch act {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		n := uint(unix.EPERM)
		if errno != nil {
			n = *errno
		}
		return unix.SECCOMP_RET_ERRNO | uint32(n)&unix.SECCOMP_RET_DATA, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	}
	return 0, fmt.Errorf("action %s is not supported", act)
}

// decide makes the program for one call: the first rule whose conditions hold
// counts. A rule without conditions comes before all that have some.
func decide(rules []specs.LinuxSyscall, name string, other uint32) ([]inst, error) {
	code := []inst{{op: opReturn, k: other}}
	slices.SortStableFunc(rules, func(a, b specs.LinuxSyscall) int {
		return min(len(a.Args), 1) - min(len(b.Args), 1)
	})
	for _, r := range slices.Backward(rules) {
		act, err := action(r.Action, r.ErrnoRet)
		if err != nil {
			return nil, err
		}
		code, err = rule(r.Args, name, []inst{{op: opReturn, k: act}}, code)
		if err != nil {
			return nil, err
		}
	}
	return code, nil
}
