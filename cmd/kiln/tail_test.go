package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

func TestTails(t *testing.T) {
	step := func(n int) digest.Digest { return digest.FromString(fmt.Sprint(n)) }
	log := func(n int, text []byte) *client.SolveStatus {
		return &client.SolveStatus{Logs: []*client.VertexLog{{Vertex: step(n), Data: text}}}
	}
	completed := func(n int, err string) *client.SolveStatus {
		now := time.Now()
		return &client.SolveStatus{Vertexes: []*client.Vertex{{Digest: step(n), Name: fmt.Sprintf("step %d", n), Completed: &now, Error: err}}}
	}
	var tl tails
	for i := range 100 {
		tl.status(log(1, fmt.Appendf(nil, "line %d\nhalf ", i)))
		tl.status(log(2, []byte("of another step\n")))
	}
	tl.status(completed(1, "exit code: 1"))
	tl.status(completed(2, "process: context canceled"))
	tl.status(completed(3, "wrote nothing"))
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
