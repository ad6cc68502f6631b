package llb

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strconv"

	"google.golang.org/protobuf/encoding/protojson"
)

// drawnVertex is a vertex as JSON shows it.
type drawnVertex struct {
	Digest      string            `json:"digest"`
	Kind        string            `json:"kind"`
	Name        string            `json:"name"`
	Inputs      []drawnInput      `json:"inputs,omitempty"`
	Outputs     int               `json:"outputs"`
	IgnoreCache bool              `json:"ignoreCache,omitempty"`
	Group       string            `json:"group,omitempty"`
	Description map[string]string `json:"description,omitempty"`
	Locations   []drawnLocation   `json:"locations,omitempty"`
	Op          json.RawMessage   `json:"op"`
}

type drawnInput struct {
	Digest string `json:"digest"`
	Output int    `json:"output"`
}

type drawnLocation struct {
	File  string `json:"file"`
	Start int    `json:"start"`
	End   int    `json:"end"`
}

// JSON writes the graph of e, one vertex on each line, inputs first. The op is in
// protobuf's JSON form; bytes in it, of files that mkfile writes, are base64.
func JSON(w io.Writer, e Edge) error {
	out := bufio.NewWriter(w)
	encode := json.NewEncoder(out)
	encode.SetEscapeHTML(false)
	for _, v := range Walk(e) {
		op, err := protojson.Marshal(v.op)
		if err != nil {
			return fmt.Errorf("llb: drawing %s: %w", v.digest, err)
		}
		d := drawnVertex{
			Digest: v.digest.String(), Kind: v.Kind(), Name: v.Name(), Outputs: v.outputs,
			IgnoreCache: v.meta.IgnoreCache, Group: v.meta.Group.GetName(),
			Description: v.meta.Description, Op: op,
		}
		for _, in := range v.inputs {
			d.Inputs = append(d.Inputs, drawnInput{in.Vertex.digest.String(), in.Output})
		}
		for _, l := range v.meta.Locations {
			if l.File != nil {
				d.Locations = append(d.Locations, drawnLocation{l.File.Name, l.Start, l.End})
			}
		}
		if err := encode.Encode(d); err != nil {
			return fmt.Errorf("llb: drawing: %w", err)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("llb: drawing: %w", err)
	}
	return nil
}

// shapes tells the kinds of ops apart in a drawing.
var shapes = map[string]string{
	"source": "ellipse", "exec": "box", "file": "note", "merge": "invtriangle",
	"diff": "doubleoctagon", "build": "box3d", "passthrough": "circle",
}

// Dot writes the graph of e in Graphviz's language. Numbers at an arrow's tail and
// head are those of the output and the input.
func Dot(w io.Writer, e Edge) error {
	out := bufio.NewWriter(w)
	fmt.Fprintln(out, "digraph {")
	number := make(map[Digest]int)
	for i, v := range Walk(e) {
		number[v.digest] = i
		label := v.Name()
		if described := v.Describe(); described != label {
			label += "\n" + described
		}
		fmt.Fprintf(out, "  n%d [label=%s shape=%q tooltip=%q];\n", i, dotString(label), shapes[v.Kind()], v.digest.String())
		for k, in := range v.inputs {
			fmt.Fprintf(out, "  n%d -> n%d [taillabel=\"%d\" headlabel=\"%d\"];\n", number[in.Vertex.digest], i, in.Output, k)
		}
	}
	if !e.IsScratch() {
		fmt.Fprintf(out, "  result [shape=plaintext];\n  n%d -> result [taillabel=\"%d\"];\n", number[e.Vertex.digest], e.Output)
	}
	fmt.Fprintln(out, "}")
	if err := out.Flush(); err != nil {
		return fmt.Errorf("llb: drawing: %w", err)
	}
	return nil
}

// dotString quotes a text of at most a few lines. Lines are cut so that boxes stay
// readable.
func dotString(s string) string {
	const width, total = 60, 240
	var cut []rune
	column := 0
	for _, r := range s {
		if len(cut) >= total {
			cut = append(cut, '…')
			break
		}
		if r == '\n' || column == width {
			cut = append(cut, '\n')
			column = 0
		}
		if r != '\n' {
			cut = append(cut, r)
			column++
		}
	}
	return strconv.Quote(string(cut))
}
