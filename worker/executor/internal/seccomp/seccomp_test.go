package seccomp

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// run interprets a program as the kernel does.
func run(t *testing.T, code []inst, audit, number uint32, args [6]uint64) uint32 {
	t.Helper()
	load := func(off uint32) uint32 {
		switch {
		case off == offNumber:
			return number
		case off == offAudit:
			return audit
		}
		a := args[(off-offArgs)/8]
		if (off-offArgs)%8 == 4 {
			return uint32(a >> 32)
		}
		return uint32(a)
	}
	var acc uint32
	for pc := 0; pc < len(code); pc++ {
		in := code[pc]
		jump := func(ok bool) {
			if ok {
				pc += int(in.jt)
			} else {
				pc += int(in.jf)
			}
		}
		switch in.op {
		case opLoad:
			acc = load(in.k)
		case opAnd:
			acc &= in.k
		case opEqual:
			jump(acc == in.k)
		case opGreater:
			jump(acc > in.k)
		case opAtLeast:
			jump(acc >= in.k)
		case opJump:
			pc += int(in.k)
		case opReturn:
			return in.k
		default:
			t.Fatalf("instruction %x", in.op)
		}
	}
	t.Fatal("the program has no end")
	return 0
}

// want reads the profile directly: no numbers, no tree.
func want(p *specs.LinuxSeccomp, name string, args [6]uint64) uint32 {
	result, conditional := uint32(unix.SECCOMP_RET_ERRNO|1), true
	for _, r := range p.Syscalls {
		if !slices.Contains(r.Names, name) || !holds(r.Args, name, args) || !conditional && len(r.Args) > 0 {
			continue
		}
		conditional = len(r.Args) > 0
		result, _ = action(r.Action, r.ErrnoRet)
	}
	return result
}

func holds(conds []specs.LinuxSeccompArg, name string, args [6]uint64) bool {
	for _, c := range conds {
		v := args[c.Index]
		if name == "socket" || name == "personality" {
			v &= 0xffffffff
		}
		ok := false
		switch c.Op {
		case specs.OpEqualTo:
			ok = v == c.Value
		case specs.OpNotEqual:
			ok = v != c.Value
		case specs.OpLessThan:
			ok = v < c.Value
		case specs.OpLessEqual:
			ok = v <= c.Value
		case specs.OpGreaterThan:
			ok = v > c.Value
		case specs.OpGreaterEqual:
			ok = v >= c.Value
		case specs.OpMaskedEqual:
			ok = v&c.Value == c.ValueTwo
		}
		if !ok {
			return false
		}
	}
	return true
}

// interesting values of arguments: those of the profile's conditions, and their neighbours.
func interesting(p *specs.LinuxSeccomp) []uint64 {
	vs := []uint64{0, 1, ^uint64(0), 1 << 32}
	for _, r := range p.Syscalls {
		for _, c := range r.Args {
			for _, v := range []uint64{c.Value, c.ValueTwo} {
				vs = append(vs, v, v-1, v+1, v|1<<32, v|1<<63)
			}
		}
	}
	return vs
}

// The program and the profile agree on every call of every ABI.
func TestDecidesAsTheProfile(t *testing.T) {
	p, err := Profile()
	if err != nil {
		t.Fatal(err)
	}
	code, err := compile(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(code))
	values := interesting(p)
	slices.Sort(values)
	values = slices.Compact(values)
	conditional := map[string]bool{}
	for _, r := range p.Syscalls {
		for _, name := range r.Names {
			conditional[name] = conditional[name] || len(r.Args) > 0
		}
	}
	for _, a := range abis() {
		checked := 0
		var known uint32
		for _, r := range p.Syscalls {
			for _, name := range r.Names {
				if n, ok := a.calls[name]; ok && n&^a.bit < armPrivate {
					known = max(known, n)
				}
			}
		}
		names := map[uint32][]string{}
		for name, n := range a.calls {
			names[n] = append(names[n], name)
		}
		for name, n := range a.calls {
			// Two names of one number: the profile's allows both.
			w := func(args [6]uint64) uint32 {
				best := uint32(0)
				for _, other := range names[n] {
					best = max(best, want(p, other, args))
				}
				if n > known && n&^a.bit < armPrivate {
					return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
				}
				return best
			}
			try := values
			if !conditional[name] {
				try = values[:2]
			}
			for _, v := range try {
				for i := range 2 {
					var args [6]uint64
					args[i] = v
					if got, want := run(t, code, a.audit, n, args), w(args); got != want {
						t.Fatalf("%s %s(%d) with argument %d = %#x: %#x, want %#x", a.name, name, n, i, v, got, want)
					}
					checked++
				}
			}
		}
		t.Logf("%s: %d cases", a.name, checked)
	}
}

// Numbers that no call has are denied, and an unknown ABI is deadly.
func TestUnknown(t *testing.T) {
	p, err := Profile()
	if err != nil {
		t.Fatal(err)
	}
	code, err := compile(p)
	if err != nil {
		t.Fatal(err)
	}
	known := map[uint32]bool{}
	for _, a := range abis() {
		for _, n := range a.calls {
			known[n] = true
		}
	}
	ways := abis()
	for range 100000 {
		n := rand.Uint32()
		for _, a := range ways {
			got := run(t, code, a.audit, n, [6]uint64{})
			if got == unix.SECCOMP_RET_ALLOW && !known[n] {
				t.Fatalf("call %#x of %s is allowed", n, a.name)
			}
		}
	}
	if got := run(t, code, 0x1234, 0, [6]uint64{}); got != unix.SECCOMP_RET_KILL_PROCESS {
		t.Errorf("a call by an unknown ABI: %#x", got)
	}
}

// Conditions of every kind, against a direct reading.
func TestConditions(t *testing.T) {
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual,
		specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual}
	yes, no := []inst{{op: opReturn, k: 1}}, []inst{{op: opReturn, k: 0}}
	r := rand.New(rand.NewPCG(1, 2))
	value := func() uint64 { return uint64(r.IntN(3))<<32 | uint64(r.IntN(3)) }
	for range 20000 {
		conds := make([]specs.LinuxSeccompArg, 1+r.IntN(3))
		for i := range conds {
			conds[i] = specs.LinuxSeccompArg{Index: uint(r.IntN(6)), Value: value(), ValueTwo: value(), Op: ops[r.IntN(len(ops))]}
		}
		var args [6]uint64
		for i := range args {
			args[i] = value()
		}
		code, err := rule(conds, "x", yes, no)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := run(t, code, 0, 0, args) == 1, holds(conds, "x", args); got != want {
			t.Fatalf("%+v with %v: %v, want %v", conds, args, got, want)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		p, _ := Profile()
		if _, err := compile(p); err != nil {
			b.Fatal(err)
		}
	}
}
