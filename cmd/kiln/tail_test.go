package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
)

func TestTails(t *testing.T) {
	step := func(n byte) solver.Subject {
		return solver.Subject{Vertex: llb.Digest{n}, Name: fmt.Sprintf("step %d", n)}
	}
	var tl tails
	for i := range 100 {
		tl.event(solver.VertexLog{Subject: step(1), Data: fmt.Appendf(nil, "line %d\nhalf ", i)})
		tl.event(solver.VertexLog{Subject: step(2), Data: []byte("of another step\n")})
	}
	tl.event(solver.VertexCompleted{Subject: step(1), Err: errors.New("exit code: 1")})
	tl.event(solver.VertexCompleted{Subject: step(2), Err: context.Canceled})
	tl.event(solver.VertexCompleted{Subject: step(3), Err: errors.New("wrote nothing")})
	var b bytes.Buffer
	tl.show(&b)
	got := b.String()
	var want strings.Builder
	want.WriteString("------\n > step 1:\n")
	for i := 91; i < 100; i++ {
		fmt.Fprintf(&want, "half line %d\n", i)
	}
	want.WriteString("half \n------\n")
	if got != want.String() {
		t.Errorf("got %s\nwant %s", got, want.String())
	}
}

func TestLastLines(t *testing.T) {
	long := strings.Repeat("x", 3*tailBytes)
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"\n", "\n"},
		{"a\nb", "a\nb"}, // fewer lines than are kept
		{strings.Repeat("a\n", tailLines), strings.Repeat("a\n", tailLines)},             // as many
		{"first\n" + strings.Repeat("a\n", tailLines), strings.Repeat("a\n", tailLines)}, // one more
		{long, long[:tailBytes]}, // a line without an end is bounded too
	} {
		if got := string(lastLines([]byte(tt.in))); got != tt.want {
			t.Errorf("lastLines(%.40q) = %.40q (%d bytes), want %.40q (%d)", tt.in, got, len(got), tt.want, len(tt.want))
		}
	}
}
