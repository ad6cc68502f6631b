package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
)

// What is kept of a step's output for the case that it fails.
const (
	tailLines = 10 // as many as the other displays show
	tailBytes = 8 << 10
)

// tails keeps the last lines that each running step wrote, and shows those of the
// steps that fail: for displays that show people no output while it comes.
type tails struct {
	kept   map[llb.Digest][]byte
	failed bytes.Buffer
}

// event takes note of an event.
func (t *tails) event(e kiln.Event) {
	vertex := e.On().Vertex
	switch e := e.(type) {
	case solver.VertexLog:
		if t.kept == nil {
			t.kept = map[llb.Digest][]byte{}
		}
		t.kept[vertex] = lastLines(append(t.kept[vertex], e.Data...))
	case solver.VertexCompleted:
		if last := t.kept[vertex]; len(last) > 0 && e.Err != nil && !errors.Is(e.Err, context.Canceled) {
			fmt.Fprintf(&t.failed, "------\n > %s:\n%s\n------\n", e.Name, bytes.TrimRight(last, "\n"))
		}
		delete(t.kept, vertex)
	}
}

// show writes what the steps that failed wrote last.
func (t *tails) show(w io.Writer) { _, _ = t.failed.WriteTo(w) }

// lastLines cuts all but the last lines off, in place.
func lastLines(data []byte) []byte {
	if over := len(data) - tailBytes; over > 0 {
		data = data[:copy(data, data[over:])]
	}
	start := len(bytes.TrimRight(data, "\n"))
	for range tailLines {
		if start = bytes.LastIndexByte(data[:start], '\n'); start < 0 {
			return data
		}
	}
	return data[:copy(data, data[start+1:])]
}
