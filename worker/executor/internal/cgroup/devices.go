package cgroup

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// allowed are the character devices that every process may read and write, as
// docker has them. Any device may be made, which is of no use without that.
var allowed = []struct{ major, minor int32 }{
	{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, // null, zero, full, random, urandom
	{5, 0}, {5, 2}, // tty, ptmx
	{136, -1}, // terminals
}

// Device is one that the processes of a group may use besides.
type Device struct {
	Block        bool
	Major, Minor uint32
	Access       string // of "rwm"
}

// restrictDevices writes that into a group of the older devices tree.
func restrictDevices(dir string, more []Device) error {
	if err := write(dir, "devices.deny", "a"); err != nil {
		return err
	}
	rules := []string{"c *:* m", "b *:* m"}
	for _, d := range allowed {
		minor := "*"
		if d.minor >= 0 {
			minor = fmt.Sprint(d.minor)
		}
		rules = append(rules, fmt.Sprintf("c %d:%s rwm", d.major, minor))
	}
	for _, d := range more {
		kind := "c"
		if d.Block {
			kind = "b"
		}
		rules = append(rules, fmt.Sprintf("%s %d:%d %s", kind, d.Major, d.Minor, d.Access))
	}
	for _, r := range rules {
		if err := write(dir, "devices.allow", r); err != nil {
			return err
		}
	}
	return nil
}

// The parts of eBPF that the filter is made of.
const (
	bpfLoad       = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	bpfAnd        = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	bpfShiftRight = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K
	bpfMove       = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	bpfMoveReg    = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	bpfJumpUnless = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	bpfExit       = unix.BPF_JMP | unix.BPF_EXIT

	accessMknod   = 1
	accessRead    = 2
	accessWrite   = 4
	deviceIsBlock = 1
	deviceIsChar  = 2
)

// deviceFilter is the eBPF program for the unified tree. Its context is the kind
// of device and the access in one word, then the major and the minor number.
func deviceFilter(more []Device) []byte {
	var code []byte
	add := func(op, dst, src int, off int16, imm int32) {
		code = append(code, byte(op), byte(dst|src<<4))
		code = binary.NativeEndian.AppendUint16(code, uint16(off))
		code = binary.NativeEndian.AppendUint32(code, uint32(imm))
	}
	result := func(v int32) {
		add(bpfMove, 0, 0, 0, v)
		add(bpfExit, 0, 0, 0, 0)
	}
	add(bpfLoad, 2, 1, 0, 0)
	add(bpfMoveReg, 3, 2, 0, 0)
	add(bpfAnd, 2, 0, 0, 0xffff)    // r2: kind
	add(bpfShiftRight, 3, 0, 0, 16) // r3: access
	add(bpfLoad, 4, 1, 4, 0)        // r4: major
	add(bpfLoad, 5, 1, 8, 0)        // r5: minor
	add(bpfJumpUnless, 3, 0, 2, accessMknod)
	result(1)
	for _, d := range more {
		kind := int32(deviceIsChar)
		if d.Block {
			kind = deviceIsBlock
		}
		add(bpfJumpUnless, 2, 0, 7, kind)
		add(bpfJumpUnless, 4, 0, 6, int32(d.Major))
		add(bpfJumpUnless, 5, 0, 5, int32(d.Minor))
		// Every access that is asked for has to be one that is allowed.
		add(bpfMoveReg, 0, 3, 0, 0)
		add(bpfAnd, 0, 0, 0, ^accessMask(d.Access))
		add(bpfJumpUnless, 0, 0, 2, 0)
		result(1)
	}
	add(bpfJumpUnless, 2, 0, int16(deviceRules()), deviceIsChar)
	for _, d := range allowed {
		if d.minor < 0 {
			add(bpfJumpUnless, 4, 0, 2, d.major)
		} else {
			add(bpfJumpUnless, 4, 0, 3, d.major)
			add(bpfJumpUnless, 5, 0, 2, d.minor)
		}
		result(1)
	}
	result(0)
	return code
}

func accessMask(access string) int32 {
	var mask int32
	for bit, letter := range map[int32]string{accessMknod: "m", accessRead: "r", accessWrite: "w"} {
		if strings.Contains(access, letter) {
			mask |= bit
		}
	}
	return mask
}

// deviceRules counts the instructions of the rules.
func deviceRules() int {
	n := 0
	for _, d := range allowed {
		if n += 3; d.minor >= 0 {
			n++
		}
	}
	return n
}

func loadDeviceFilter(more []Device) (int, error) {
	code, license := deviceFilter(more), []byte("Apache-2.0\x00")
	attr := struct {
		kind, count   uint32
		code, license uint64
		rest          [96]byte
	}{kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(code) / 8),
		code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if errno != 0 {
		return -1, fmt.Errorf("loading the device filter: %w", errno)
	}
	unix.CloseOnExec(int(fd))
	return int(fd), nil
}

func attachDeviceFilter(dir, program int) error {
	attr := struct{ target, program, kind, flags, replace, pad uint32 }{
		uint32(dir), uint32(program), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI, 0, 0}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_ATTACH, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return fmt.Errorf("attaching the device filter: %w", errno)
	}
	return nil
}
