package worker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// binfmtDir is where the kernel lists the programs that run others.
const binfmtDir = "/proc/sys/fs/binfmt_misc"

// EmulatorError is a step for another processor than the machine's, which the
// kernel has no emulator for.
//
// The step is tried first: a kernel may run such programs by itself (386 on amd64),
// by an emulator that is listed out of this process's sight, and an image may hold
// this machine's programs, whatever it says it is for.
type EmulatorError struct {
	Platform, Machine ocispecs.Platform
	Err               error
	hint              string
}

func (e *EmulatorError) Error() string {
	return fmt.Sprintf("running a program of %s on %s: %v", platforms.Format(e.Platform), platforms.Format(e.Machine), e.Err)
}

// Hint says what to do.
func (e *EmulatorError) Hint() string { return e.hint }

// Unwrap gives the kernel's error.
func (e *EmulatorError) Unwrap() error { return e.Err }

// qemuNames are QEMU's names of processors, where they are not Go's.
var qemuNames = map[string]string{
	"amd64": "x86_64", "386": "i386", "arm64": "aarch64", "loong64": "loongarch64", "mips64le": "mips64el", "mipsle": "mipsel",
}

// explainEmulator says what is missing where err, from the start of a program for
// platform p, comes of it; any other error stays as it is.
func explainEmulator(p ocispecs.Platform, binfmt string, err error) error {
	machine := platforms.Normalize(platforms.DefaultSpec())
	p = platforms.Normalize(p)
	if err == nil || p.Architecture == "" || p.OS != machine.OS || p.Architecture == machine.Architecture {
		return err
	}
	e := &EmulatorError{Platform: p, Machine: machine, Err: err}
	name, ok := qemuNames[p.Architecture]
	if !ok {
		name = p.Architecture
	}
	handler, found := readHandler(filepath.Join(binfmt, "qemu-"+name))
	// An OCI runtime gives the kernel's error in its own words.
	badFormat := errors.Is(err, unix.ENOEXEC) || strings.Contains(strings.ToLower(err.Error()), "exec format error")
	switch {
	case badFormat && !found:
		e.hint = fmt.Sprintf("install an emulator: `apt-get install qemu-user-static binfmt-support` on Debian or Ubuntu, `docker run --privileged --rm tonistiigi/binfmt --install %s` elsewhere", p.Architecture)
	case badFormat && !handler.enabled:
		e.hint = fmt.Sprintf("the emulator is switched off: `echo 1 > %s/qemu-%s` switches it on", binfmtDir, name)
	case errors.Is(err, fs.ErrNotExist) && found && handler.enabled && !handler.fixed:
		e.hint = fmt.Sprintf("the emulator %s is registered without the flag F, so that it would have to be in the image; register it with that flag, as the package qemu-user-static does", handler.program)
	default:
		return err
	}
	return e
}

// handler is what the kernel says of one program that runs others.
type handler struct {
	program string
	enabled bool
	fixed   bool // the kernel holds the program open, so that every root can use it
	// magic is what files that it is for have at an offset, in hexadecimal.
	magic, offset string
}

// readHandler reads a file of binfmt_misc.
func readHandler(file string) (h handler, ok bool) {
	data, err := os.ReadFile(file)
	if err != nil {
		return h, false
	}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "enabled":
			h.enabled = true
		case "interpreter":
			h.program = value
		case "magic":
			h.magic = value
		case "offset":
			h.offset = value
		case "flags:":
			h.fixed = strings.Contains(value, "F")
		}
	}
	return h, true
}
