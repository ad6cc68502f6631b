package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

// What is kept of a step's output for the case that it fails.
const (
	tailLines = 10 // as many as the other displays show
	tailBytes = 8 << 10
)

// tails keeps the last lines that each running step wrote, and shows those of the
// steps that fail: for displays that show people no output while it comes.
type tails struct {
	kept   map[digest.Digest][]byte
	failed bytes.Buffer
}

// status takes note of what happened.
func (t *tails) status(s *client.SolveStatus) {
	for _, l := range s.Logs {
		if t.kept == nil {
			t.kept = map[digest.Digest][]byte{}
		}
		t.kept[l.Vertex] = lastLines(append(t.kept[l.Vertex], l.Data...))
	}
	for _, v := range s.Vertexes {
		if v.Completed == nil {
			continue
		}
		canceled := strings.HasSuffix(v.Error, context.Canceled.Error())
		if last := t.kept[v.Digest]; len(last) > 0 && v.Error != "" && !canceled {
			fmt.Fprintf(&t.failed, "------\n > %s:\n%s\n------\n", v.Name, bytes.TrimRight(last, "\n"))
		}
		delete(t.kept, v.Digest)
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
