package seccomp

import (
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// An inst is an instruction of classic BPF: what it does, how many instructions
// it skips when a comparison holds and when not, and its operand.
type inst struct {
	op     uint16
	jt, jf uint8
	k      uint32
}

const (
	opLoad     = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	opAnd      = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	opEqual    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opGreater  = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	opAtLeast  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	opJump     = unix.BPF_JMP | unix.BPF_JA
	opReturn   = unix.BPF_RET | unix.BPF_K
	maxProgram = 4096 // the kernel's limit
)

// Where the kernel puts what it knows of a call.
const (
	offNumber = 0
	offAudit  = 4
	offArgs   = 16
)

// branch goes on with yes where the accumulator compares, with no where it does not.
func branch(op uint16, k uint32, yes, no []inst) []inst {
	const far = 255 // a comparison skips no more than that
	var head []inst
	if len(no) <= far {
		head = []inst{{op: op, jt: uint8(len(no)), jf: 0, k: k}}
	} else {
		head = []inst{{op: op, jt: 0, jf: 1, k: k}, {op: opJump, k: uint32(len(no))}}
		// The jump is what a comparison that holds goes on with.
	}
	return slices.Concat(head, no, yes)
}

// search finds the verdict on the number in the accumulator.
func search(vs []verdict) ([]inst, error) {
	slices.SortFunc(vs, func(a, b verdict) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	var build func(vs []verdict) []inst
	build = func(vs []verdict) []inst {
		if len(vs) == 1 {
			return vs[0].code
		}
		half := len(vs) / 2
		return branch(opAtLeast, vs[half].first, build(vs[half:]), build(vs[:half]))
	}
	if len(vs) == 0 {
		return nil, errors.New("no calls")
	}
	code := build(vs)
	if len(code) > maxProgram {
		return nil, fmt.Errorf("the program has %d instructions, the kernel takes %d", len(code), maxProgram)
	}
	return code, nil
}

// narrow are the arguments that the kernel reads as 32 bits, whatever the upper
// half of the register holds: a comparison of all 64 could be led astray by it.
var narrow = map[string]uint{"socket": 0, "personality": 0}

// rule goes on with yes when every condition holds, and with no otherwise. Both
// end in a return.
func rule(conds []specs.LinuxSeccompArg, name string, yes, no []inst) ([]inst, error) {
	for _, c := range slices.Backward(conds) {
		if c.Index > 5 {
			return nil, fmt.Errorf("a condition on argument %d", c.Index)
		}
		n, ok := narrow[name]
		var err error
		if yes, err = condition(c, ok && n == c.Index, yes, no); err != nil {
			return nil, err
		}
	}
	return yes, nil
}

// condition compares an argument, its upper half first.
func condition(c specs.LinuxSeccompArg, low bool, yes, no []inst) ([]inst, error) {
	loadHigh := inst{op: opLoad, k: uint32(offArgs + 8*c.Index + 4)}
	loadLow := inst{op: opLoad, k: uint32(offArgs + 8*c.Index)}
	high, k := uint32(c.Value>>32), uint32(c.Value)
	with := func(in inst, code []inst) []inst { return slices.Concat([]inst{in}, code) }

	var lower []inst // decides where the upper halves are equal
	above, below := no, no
	switch c.Op {
	case specs.OpMaskedEqual:
		mask := c.Value
		high, k = uint32(c.ValueTwo>>32), uint32(c.ValueTwo)
		lower = with(loadLow, with(inst{op: opAnd, k: uint32(mask)}, branch(opEqual, k, yes, no)))
		if low {
			return lower, nil
		}
		return with(loadHigh, with(inst{op: opAnd, k: uint32(mask >> 32)}, branch(opEqual, high, lower, no))), nil
	case specs.OpEqualTo:
		lower = branch(opEqual, k, yes, no)
	case specs.OpNotEqual:
		above, below = yes, yes
		lower = branch(opEqual, k, no, yes)
	case specs.OpLessThan:
		below = yes
		lower = branch(opAtLeast, k, no, yes)
	case specs.OpLessEqual:
		below = yes
		lower = branch(opGreater, k, no, yes)
	case specs.OpGreaterThan:
		above = yes
		lower = branch(opGreater, k, yes, no)
	case specs.OpGreaterEqual:
		above = yes
		lower = branch(opAtLeast, k, yes, no)
	default:
		return nil, fmt.Errorf("comparison %s is not supported", c.Op)
	}
	lower = with(loadLow, lower)
	if low {
		return lower, nil
	}
	return with(loadHigh, branch(opGreater, high, above, branch(opEqual, high, lower, below))), nil
}
