// Package launch starts a process by way of a stub: an executable of a few
// hundred bytes that makes the system calls of a program and then becomes the
// process.
//
// A program is a list of calls that the parent has worked out: each argument is
// a number, an address in the program's data, or the result of an earlier call.
// An error jumps to a later call where the program says so; any other ends the
// stub, which reports the call and the error.
//
// What must happen inside the new process (a mount of /proc in its own pid
// namespace, pivot_root, dropping capabilities) is done this way and not by a
// second copy of the parent's program, for two reasons. A start costs a tenth of
// a millisecond, where a Go program of this size needs seven. And between clone
// and exec /proc/self/exe is the stub, a sealed file in memory: there is no
// moment at which a container could get hold of the parent's own executable.
package launch

import (
	"encoding/binary"
	"fmt"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	base       = 0x200000000 // where the stub maps the program; the stubs hold the same number
	maxProgram = 0x100000
	headerSize = 64 // argv, envp, the failed call, its error
	callSize   = 96
	signals    = 64 // that there are, numbered from 1
	resultAt   = 80 // within a call
)

// Arg is an argument of a call.
type Arg struct {
	kind  argKind
	value uint64
}

type argKind uint8

const (
	argInt    argKind = iota // value
	argData                  // address of data at offset value
	argResult                // result of call number value
	argHeader                // word of the header at offset value
)

// Int is a number.
func Int[T ~int | ~int32 | ~uint | ~uint32 | ~uint64 | ~uintptr](n T) Arg {
	return Arg{argInt, uint64(n)}
}

// Argv and Envp are the arguments and the environment that Start was given, in
// the form that execve wants.
var (
	Argv = Arg{argHeader, 0}
	Envp = Arg{argHeader, 8}
)

// Call names a call of a program.
type Call int

// Result is what the call returned.
func (c Call) Result() Arg { return Arg{argResult, uint64(c)} }

type call struct {
	what    string
	nr      uint64
	args    [6]Arg
	onError int // the call to go on with, plus 1; 0 ends the stub
	errno   syscall.Errno
}

// Program is a list of system calls, run in order. The zero value is empty. It
// is not safe for concurrent use.
type Program struct {
	calls    []call
	data     []byte
	pointers []int // offsets in data of words that are to become addresses
}

// Call appends a call; what says what it is for, as in "mounting /proc".
func (p *Program) Call(what string, nr uintptr, args ...Arg) Call {
	c := call{what: what, nr: uint64(nr)}
	copy(c.args[:], args)
	p.calls = append(p.calls, c)
	return Call(len(p.calls) - 1)
}

// OnError makes the program go on behind the last call so far when c fails with
// errno; errno 0 is any error.
func (p *Program) OnError(errno syscall.Errno, cs ...Call) {
	for _, c := range cs {
		p.calls[c].onError = len(p.calls) + 1
		p.calls[c].errno = errno
	}
}

// HearSignals has the process hear the signals that this one ignores, as it does SIGHUP
// below nohup: what is ignored stays so behind an exec.
func (p *Program) HearSignals() {
	for n := range syscall.Signal(signals) {
		if !signal.Ignored(n + 1) {
			continue
		}
		// The kernel's struct sigaction of zeros is SIG_DFL on every architecture.
		action := p.Data(make([]byte, 32))
		p.Call("hearing signals", unix.SYS_RT_SIGACTION, Int(n+1), action, Int(0), Int(signals/8))
	}
}

// Data appends bytes that calls may read or write, and gives their address.
func (p *Program) Data(b []byte) Arg {
	for len(p.data)%8 != 0 {
		p.data = append(p.data, 0)
	}
	at := len(p.data)
	p.data = append(p.data, b...)
	return Arg{argData, uint64(at)}
}

// String appends a string with the zero byte that ends it.
func (p *Program) String(s string) Arg {
	return p.Data(append([]byte(s), 0))
}

// Words appends words of 8 bytes, each a number or an address in the data.
func (p *Program) Words(ws ...Arg) Arg {
	b := make([]byte, 0, 8*len(ws))
	for _, w := range ws {
		b = binary.NativeEndian.AppendUint64(b, w.value)
	}
	at := p.Data(b)
	for i, w := range ws {
		if w.kind == argData {
			p.pointers = append(p.pointers, int(at.value)+8*i)
		}
	}
	return at
}

// encode lays the program out as the stub reads it: the header, the calls, the data.
func (p *Program) encode() ([]byte, error) {
	dataAt := headerSize + callSize*len(p.calls)
	if dataAt+len(p.data) > maxProgram {
		return nil, fmt.Errorf("a start of %d calls and %d bytes of data is larger than %d bytes", len(p.calls), len(p.data), maxProgram)
	}
	out := make([]byte, dataAt+len(p.data))
	put := func(at int, v uint64) { binary.NativeEndian.PutUint64(out[at:], v) }
	for i, c := range p.calls {
		at := callAt(i)
		put(at, c.nr)
		var refs uint64
		for j, a := range c.args {
			v := a.value
			switch a.kind {
			case argData:
				v += base + uint64(dataAt)
			case argResult:
				v = base + uint64(callAt(int(v))) + resultAt
				refs |= 1 << j
			case argHeader:
				v += base
				refs |= 1 << j
			}
			put(at+8+8*j, v)
		}
		put(at+56, refs)
		if c.onError > 0 {
			put(at+64, base+uint64(callAt(c.onError-1)))
			put(at+72, uint64(c.errno))
		}
	}
	copy(out[dataAt:], p.data)
	for _, off := range p.pointers {
		v := binary.NativeEndian.Uint64(p.data[off:])
		put(dataAt+off, v+base+uint64(dataAt))
	}
	return out, nil
}

func callAt(i int) int { return headerSize + callSize*i }
