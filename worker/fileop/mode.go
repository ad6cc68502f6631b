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

// modeClause is one "who op perms" of a symbolic mode.
type modeClause struct {
	who  uint32 // of 0700, 0070, 0007: those meant
	op   byte   // '+', '-', '='
	bits uint32 // of 0007: r, w and x of whoever is meant
	x    bool   // X: x for directories, and for what has some x already
	s, t bool
	from byte // 'u', 'g', 'o': the permissions of those; 0 is none
}

// parseMode reads "0644", "u=rwX,go-w" and the like.
func parseMode(s string) (*modeChange, error) {
	bad := func() (*modeChange, error) { return nil, fmt.Errorf("invalid mode %q", s) }
	if s == "" {
		return bad()
	}
	if s[0] >= '0' && s[0] <= '9' {
		m, err := strconv.ParseUint(s, 8, 32)
		if err != nil || m > 0o7777 {
			return bad()
		}
		return &modeChange{octal: true, mode: uint32(m)}, nil
	}
	out := new(modeChange)
	for _, clause := range strings.Split(s, ",") {
		var who uint32
		for clause != "" && strings.IndexByte("ugoa", clause[0]) >= 0 {
			who |= map[byte]uint32{'u': 0o700, 'g': 0o070, 'o': 0o007, 'a': 0o777}[clause[0]]
			clause = clause[1:]
		}
		if who == 0 {
			who = 0o777
		}
		if clause == "" {
			return bad()
		}
		for clause != "" {
			c := modeClause{who: who, op: clause[0]}
			if strings.IndexByte("+-=", c.op) < 0 {
				return bad()
			}
			n := 1
			for n < len(clause) && strings.IndexByte("+-=", clause[n]) < 0 {
				if !c.perm(clause[n]) {
					return bad()
				}
				n++
			}
			clause = clause[n:]
			out.clauses = append(out.clauses, c)
		}
	}
	return out, nil
}

func (c *modeClause) perm(p byte) bool {
	switch p {
	case 'r':
		c.bits |= 4
	case 'w':
		c.bits |= 2
	case 'x':
		c.bits |= 1
	case 'X':
		c.x = true
	case 's':
		c.s = true
	case 't':
		c.t = true
	case 'u', 'g', 'o':
		c.from = p
	default:
		return false
	}
	return true
}

// apply gives the mode that a file of that kind and mode gets.
func (m *modeChange) apply(mode uint32, kind tree.Kind) uint32 {
	if m.octal {
		return m.mode
	}
	for _, c := range m.clauses {
		bits := c.bits
		switch c.from {
		case 'u':
			bits |= mode >> 6 & 7
		case 'g':
			bits |= mode >> 3 & 7
		case 'o':
			bits |= mode & 7
		}
		if c.x && (kind == tree.Dir || mode&0o111 != 0) {
			bits |= 1
		}
		set := (bits<<6 | bits<<3 | bits) & c.who
		reach := c.who // what "=" takes away first
		if c.who&0o700 != 0 {
			reach |= 0o4000
		}
		if c.who&0o070 != 0 {
			reach |= 0o2000
		}
		if c.who == 0o777 {
			reach |= 0o1000
		}
		if c.s {
			set |= reach & 0o6000
		}
		if c.t {
			set |= reach & 0o1000
		}
		switch c.op {
		case '+':
			mode |= set
		case '-':
			mode &^= set
		case '=':
			mode = mode&^reach | set
		}
	}
	return mode
}
