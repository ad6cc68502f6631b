package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"
)

// The plain loops of W12, and the images of its graphs.

// eachVertex calls fn for the operations of a definition's file, with the digest by
// which each is known.
func eachVertex(file string, fn func(i int, sum [sha256.Size]byte, op *pb.Op) error) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var def pb.Definition
	if err := proto.Unmarshal(data, &def); err != nil {
		return err
	}
	for i, encoded := range def.Def {
		var op pb.Op
		if err := proto.Unmarshal(encoded, &op); err != nil {
			return err
		}
		if err := fn(i, sha256.Sum256(encoded), &op); err != nil {
			return err
		}
	}
	return nil
}

// hashVertices reads a definition.
func hashVertices(file string) error {
	seen := map[[sha256.Size]byte]bool{}
	return eachVertex(file, func(_ int, sum [sha256.Size]byte, _ *pb.Op) error {
		seen[sum] = true
		return nil
	})
}

// makeVertices does what a first solve of a definition leaves: the files that its
// operations make, each hashed, and a record of a hundred bytes for each vertex,
// appended to one file by a write. What operations copy is named by a record and not
// written again.
func makeVertices(file, dir string) (err error) {
	log, err := os.Create(filepath.Join(dir, "records"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	made := 0
	return eachVertex(file, func(i int, sum [sha256.Size]byte, op *pb.Op) error {
		var content [sha256.Size]byte
		for _, a := range op.GetFile().GetActions() {
			f := a.GetMkfile()
			if f == nil {
				continue
			}
			sub := filepath.Join(dir, fmt.Sprint(made/1000))
			if made%1000 == 0 {
				if err := os.Mkdir(sub, 0o755); err != nil {
					return err
				}
			}
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(made)), f.Data, os.FileMode(f.Mode)); err != nil {
				return err
			}
			made++
			content = sha256.Sum256(f.Data)
		}
		record := bytes.Repeat([]byte{' '}, 100)
		copy(record, fmt.Sprintf("%d", i))
		copy(record[16:], sum[:])
		copy(record[48:], content[:])
		_, err := log.Write(record)
		return err
	})
}

// graphPlain runs the loops of every graph that was made.
func graphPlain(l *lab) (map[string][]part, error) {
	out := map[string][]part{}
	for _, s := range shapes {
		for _, n := range graphSizes {
			dir, err := l.scratch()
			if err != nil {
				return nil, err
			}
			p, err := l.parts(
				l.start(),
				[]string{"make and hash its files, write a record for each vertex", "vertices", l.graph(s.name, n), dir},
				[]string{"hash each vertex", "digests", l.graph(s.name, n)},
			)
			if err != nil {
				return nil, err
			}
			out[graphRow(s.name, n, "first")] = p[:2]
			out[graphRow(s.name, n, "hit")] = []part{p[0], p[2]}
		}
	}
	return out, nil
}

// comparedGraph is the size of the largest graphs whose results are compared: what
// exports larger ones would take BuildKit minutes.
const comparedGraph = 1000

// exportGraph writes the image of a graph that was solved, of the first round, for the
// comparison. A tool that solves a graph and cannot export it is left uncompared.
func (r *run) exportGraph(shape string, n int) error {
	if r.n > 0 || n > comparedGraph {
		return nil
	}
	ctl, addr := filepath.Join(r.peers, "buildctl"), ""
	switch t := r.tool.(type) {
	case *kilnTool:
		// The definition was solved without an exporter; a daemon finds the records of it.
		if err := t.serve(r.ctx); err != nil {
			return err
		}
		defer t.stop()
		addr = t.addr()
	case *buildkit:
		addr = t.addr()
	default:
		return nil
	}
	out := r.out(fmt.Sprintf("graph-%s-%d", shape, n))
	cmd := exec.CommandContext(r.ctx, ctl, "--addr", addr, "build", "--progress", "plain", "--output", "type=oci,dest="+out)
	def, err := os.Open(r.graph(shape, n))
	if err != nil {
		return err
	}
	defer def.Close()
	cmd.Stdin = def
	if log, err := cmd.CombinedOutput(); err != nil {
		r.notes = append(r.notes, fmt.Sprintf("%s could not export the %s graph of %d vertices, which is not compared: %s.", r.tool.name(), shape, r.scaled(n), lastLine(string(log))))
		return r.ctx.Err()
	}
	r.image(graphRow(shape, n, "first"), out)
	return nil
}
