package launch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

//lint:ignore U1000 it is code to be copied, and never called
func stub()
func stubAddr() uintptr

const (
	stubVaddr   = 0x400000
	elfHeader   = 64
	elfSegment  = 56
	stubEntryAt = elfHeader + 2*elfSegment
)

// stubCode copies the stub's machine code out of our own text.
func stubCode() []byte {
	mark := bytes.Repeat([]byte{0xF4}, 8)
	addr := stubAddr()
	code := unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), 1024)
	return bytes.Clone(code[:bytes.Index(code, mark)])
}

// stubImage is an ELF executable that holds the stub: one segment of code, and a
// note that its stack is not executable.
func stubImage() []byte {
	code := stubCode()
	machine := uint16(62) // EM_X86_64
	if runtime.GOARCH == "arm64" {
		machine = 183 // EM_AARCH64
	}
	le := binary.LittleEndian
	b := make([]byte, stubEntryAt, stubEntryAt+len(code))
	copy(b, "\x7fELF\x02\x01\x01") // 64 bits, little endian, version 1
	le.PutUint16(b[16:], 2)        // ET_EXEC
	le.PutUint16(b[18:], machine)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], stubVaddr+stubEntryAt) // entry
	le.PutUint64(b[32:], elfHeader)             // program headers
	le.PutUint16(b[52:], elfHeader)
	le.PutUint16(b[54:], elfSegment)
	le.PutUint16(b[56:], 2)

	size := uint64(stubEntryAt + len(code))
	load := b[elfHeader:]
	le.PutUint32(load[0:], 1) // PT_LOAD
	le.PutUint32(load[4:], 5) // readable, executable
	le.PutUint64(load[16:], stubVaddr)
	le.PutUint64(load[24:], stubVaddr)
	le.PutUint64(load[32:], size)
	le.PutUint64(load[40:], size)
	le.PutUint64(load[48:], 0x10000) // the largest page size of arm64

	stack := b[elfHeader+elfSegment:]
	le.PutUint32(stack[0:], 0x6474e551) // PT_GNU_STACK
	le.PutUint32(stack[4:], 6)          // readable, writable
	le.PutUint64(stack[48:], 16)
	return append(b, code...)
}

// stubFile gives a descriptor of the stub's file, sealed and open for reading.
var stubFile = sync.OnceValues(func() (uintptr, error) {
	// A child that another goroutine forks while our descriptor is writable would
	// hold it until its exec, and until then the kernel refuses to execute the file.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()

	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("kiln-stub", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("kiln-stub", flags)
	}
	if err != nil {
		return 0, fmt.Errorf("making the stub's file in memory: %w", err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, stubImage()); err != nil {
		return 0, fmt.Errorf("writing the stub: %w", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return 0, fmt.Errorf("sealing the stub: %w", err)
	}
	ro, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("opening the stub: %w", err)
	}
	return uintptr(ro), nil
})
