package fileop

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/cache/tree"
)

// modeChange is a change of permissions as chmod(1) takes it, with a umask of 0.
type modeChange struct {
	octal   bool
	mode    uint32
	clauses []modeClause
}

// modeClause is one "who op perms" of a symbolic mode. Permissions that are
// copied from others make a clause of their own.
type modeClause struct {
	who  uint32 // the bits of those meant, set-id bits included
	op   byte   // '+', '-', '='
	bits uint32 // what is given or taken
	x    bool   // X: x for directories, and for what had some x to begin with
	from byte   // 'u', 'g', 'o': the permissions of those; 0 is none
}

// The bits that a letter in front of the operator stands for.
var modeWho = map[byte]uint32{'u': 0o4700, 'g': 0o2070, 'o': 0o007, 'a': 0o6777}

// parseMode reads "0644", "u=rwX,go-w" and the like.
func parseMode(s string) (*modeChange, error) {
	if s != "" && s[0] >= '0' && s[0] <= '9' {
		m, err := strconv.ParseUint(s, 8, 32)
		if err != nil || m > 0o7777 {
			return nil, fmt.Errorf("invalid mode %q", s)
		}
		return &modeChange{octal: true, mode: uint32(m)}, nil
	}
	out := new(modeChange)
	for clause := range strings.SplitSeq(s, ",") {
		var who uint32
		for clause != "" && modeWho[clause[0]] != 0 {
			who |= modeWho[clause[0]]
			clause = clause[1:]
		}
		if who == 0 {
			who = modeWho['a']
		}
		if clause == "" {
			return nil, fmt.Errorf("invalid mode %q", s)
		}
		for clause != "" {
			var ok bool
			if clause, ok = out.operation(clause, who); !ok {
				return nil, fmt.Errorf("invalid mode %q", s)
			}
		}
	}
	return out, nil
}

// operation reads one operator and the permissions behind it, and gives the rest.
func (m *modeChange) operation(s string, who uint32) (rest string, ok bool) {
	c := modeClause{who: who, op: s[0]}
	if strings.IndexByte("+-=", c.op) < 0 {
		return "", false
	}
	copied := false
	for s = s[1:]; s != "" && strings.IndexByte("+-=", s[0]) < 0; s = s[1:] {
		switch p := s[0]; p {
		case 'r':
			c.bits |= 0o444
		case 'w':
			c.bits |= 0o222
		case 'x':
			c.bits |= 0o111
		case 'X':
			if c.op == '-' {
				c.bits |= 0o111
			} else {
				c.x = true
			}
		case 's':
			c.bits |= 0o6000
		case 't':
			// The sticky bit belongs to nobody; "o" alone does not reach it.
			if c.who&^0o007 != 0 {
				c.who |= 0o1000
				c.bits |= 0o1000
			}
		case 'u', 'g', 'o':
			if c.bits != 0 || c.x {
				m.clauses = append(m.clauses, c)
			}
			m.clauses = append(m.clauses, modeClause{who: c.who & 0o777, op: c.op, from: p})
			c.bits, c.x, copied = 0, false, true
		default:
			return "", false
		}
	}
	if c.bits != 0 || c.x || c.op == '=' && !copied {
		m.clauses = append(m.clauses, c)
	}
	return s, true
}

// apply gives the mode that a file of that kind and mode gets.
func (m *modeChange) apply(mode uint32, kind tree.Kind) uint32 {
	if m.octal {
		return m.mode
	}
	executable := kind == tree.Dir || mode&0o111 != 0
	for _, c := range m.clauses {
		bits := c.bits
		if c.x && executable {
			bits |= 0o111
		}
		if c.from != 0 {
			of := mode >> map[byte]int{'u': 6, 'g': 3, 'o': 0}[c.from] & 7
			bits = of<<6 | of<<3 | of
		}
		bits &= c.who
		switch c.op {
		case '+':
			mode |= bits
		case '-':
			mode &^= bits
		case '=':
			mode = mode&^c.who | bits
		}
	}
	return mode
}
