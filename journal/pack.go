package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/explain"
	"github.com/kiln-build/kiln/solver"
)

// packVersion is that of a packed build.
const packVersion = 1

// packed is a build as it goes from one machine to another: its line, its report, and
// the local folders' trees.
type packed struct {
	Version   int     `json:"version"`
	ID        string  `json:"id"`
	Project   string  `json:"project,omitempty"`
	Started   int64   `json:"started"`   // nanoseconds since 1970
	Completed int64   `json:"completed"` // nanoseconds since 1970
	Report    *Report `json:"report"`
	// Roots are the trees by their pins, as entries, and Nodes are what is below them,
	// each once.
	Roots map[string][]byte `json:"roots,omitempty"`
	Nodes [][]byte          `json:"nodes,omitempty"`
}

// Pack gives a build for the journals of other machines (see Adopt), in max bytes at
// most. Trees that would take more are left out: of what is compared with them it is
// known that files changed, and not which. So is what others have no use for, or must
// not see: addresses, the attributes of sources, the options of nested builds.
func (j *Journal) Pack(b Build, r *Report, max int) ([]byte, error) {
	p := packed{
		Version: packVersion, ID: b.ID, Project: b.Project, Started: b.Started.UnixNano(), Completed: b.Completed.UnixNano(),
		Report: &Report{Steps: slices.Clone(r.Steps), Args: r.Args},
	}
	for i := range p.Report.Steps {
		s := &p.Report.Steps[i]
		op, err := s.op()
		if err != nil {
			return nil, err
		}
		if s.Does, err = (proto.MarshalOptions{Deterministic: true}).Marshal(public(op)); err != nil {
			return nil, fmt.Errorf("writing what %s does: %w", s.Name, err)
		}
		s.vertex, s.From, s.Why = nil, "", ""
	}
	size, err := p.size()
	if err != nil || size > max {
		return nil, errors.Join(err, errLarge)
	}
	have := map[tree.Addr]bool{}
	for i := range r.Steps {
		if s := &r.Steps[i]; s.isFolder() && s.root.Kind == tree.Dir {
			size += p.addTree(j.cache, s, have, max-size)
		}
	}
	return json.Marshal(&p)
}

func (p *packed) size() (int, error) {
	data, err := json.Marshal(p)
	return len(data), err
}

// public leaves of an op what is compared.
func public(op *pb.Op) *pb.Op {
	out := &pb.Op{Platform: op.Platform}
	switch x := op.Op.(type) {
	case *pb.Op_Exec, *pb.Op_File:
		out.Op = x
	case *pb.Op_Source:
		scheme, ref, _ := strings.Cut(x.Source.Identifier, "://")
		switch scheme {
		case "local", "docker-image", "oci-layout":
			scheme += "://" + ref
		default:
			scheme += "://" // addresses may have passwords in them
		}
		out.Op = &pb.Op_Source{Source: &pb.SourceOp{Identifier: scheme}}
	}
	return out
}

// addTree adds the tree of a step's folder, if that takes no more than room bytes and
// all of it is there, and gives what it took.
func (p *packed) addTree(n tree.Nodes, s *Step, have map[tree.Addr]bool, room int) int {
	root := s.root.AppendEncode(nil)
	took := base64Size(len(root)) + len(s.Pin) + len(`,"roots":{"":},"nodes":[]`)
	var nodes [][]byte
	met := map[tree.Addr]bool{}
	stack := []tree.Addr{s.root.Children.Addr}
	for len(stack) > 0 {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if at == (tree.Addr{}) || have[at] || met[at] {
			continue
		}
		met[at] = true
		b, err := n.Node(at)
		if took += base64Size(len(b)); err != nil || took > room {
			return 0
		}
		nodes = append(nodes, b)
		for ref, err := range tree.Refs(b) {
			if err != nil {
				return 0
			}
			stack = append(stack, ref.Addr)
		}
	}
	if p.Roots == nil {
		p.Roots = map[string][]byte{}
	}
	p.Roots[s.Pin], p.Nodes = root, append(p.Nodes, nodes...)
	for at := range met {
		have[at] = true
	}
	return took
}

// base64Size is what so many bytes take in JSON, with what is around them.
func base64Size(n int) int { return (n+2)/3*4 + 8 }

// Adopt takes over a build that Pack gave on another machine, which the remote cache
// called from knew of: later builds are compared with it. One that is known already is
// left as it is. What is damaged, or makes no sense, is an error, and nothing of it is
// kept.
func (j *Journal) Adopt(data []byte, from string) error {
	if bytes.Count(data, []byte("{")) > maxParts {
		return errors.New("a build that ran elsewhere has too many steps")
	}
	p := new(packed)
	if err := json.Unmarshal(data, p); err != nil {
		return fmt.Errorf("reading a build that ran elsewhere: %w", err)
	}
	if p.Version != packVersion {
		return fmt.Errorf("a build that ran elsewhere is of version %d, and this kiln reads version %d", p.Version, packVersion)
	}
	if !IsName(p.ID) || len(from) > maxFrom || p.Report == nil || p.Report.check() != nil {
		return fmt.Errorf("reading a build that ran elsewhere: %w", errDamaged)
	}
	stored, err := p.Report.encode()
	if err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	b := Build{
		ID: p.ID, Project: p.Project, Started: time.Unix(0, p.Started), Completed: time.Unix(0, p.Completed),
		Status: explain.Done, From: from,
		// Not the name that a report of this machine's has: nobody else is to say what is in that.
		report: sha256.Sum256(append([]byte("kiln adopted report 1\x00"), stored...)),
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	known, err := j.builds()
	if err != nil || slices.ContainsFunc(known, func(k Build) bool { return k.ID == b.ID }) {
		return err
	}
	if err := j.adoptTrees(p); err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	if err := j.reports.Put(b.report[:], stored); err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	size, err := j.append(b)
	if err == nil {
		err = j.trim(size)
	}
	if err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	return nil
}

const (
	// maxParts bounds the steps of a build that ran elsewhere, with their inputs: a few
	// bytes of JSON are half a kilobyte here.
	maxParts = 1 << 16
	maxFrom  = 4096
)

// adoptTrees keeps the trees of a build that ran elsewhere. One that is not whole, or
// not the one that its pin names, is left out.
func (j *Journal) adoptTrees(p *packed) error {
	nodes := tree.NewMemNodes()
	for _, b := range p.Nodes {
		if err := nodes.PutNode(sha256.Sum256(b), b); err != nil {
			return err
		}
	}
	for pin, encoded := range p.Roots {
		root, err := tree.DecodeEntry(encoded)
		if err != nil || root.Kind != tree.Dir || pin != solver.FolderPin(root) || !isModest(nodes, root) || tree.Verify(nodes, root) != nil {
			continue
		}
		if _, ok := j.cache.KeptTree(keptName(pin)); ok {
			continue
		}
		if err := copyNodes(j.cache, nodes, root.Children.Addr, map[tree.Addr]bool{}); err != nil {
			return err
		}
		if err := j.cache.KeepTree(keptName(pin), root); err != nil {
			return err
		}
	}
	return nil
}

// copyNodes copies the nodes below one, those that are below others first: whoever
// has a node has what it leads to.
func copyNodes(to, from tree.Nodes, at tree.Addr, done map[tree.Addr]bool) error {
	if at == (tree.Addr{}) || done[at] {
		return nil
	}
	done[at] = true
	b, err := from.Node(at)
	if err != nil {
		return err
	}
	for ref, err := range tree.Refs(b) {
		if err == nil {
			err = copyNodes(to, from, ref.Addr, done)
		}
		if err != nil {
			return err
		}
	}
	return to.PutNode(at, b)
}

// What the tree of a folder may be. A few nodes can make a tree of any size, whose
// directories are all the same one.
const (
	maxTreeEntries = 4 << 20
	maxTreeDepth   = 128 // of nodes
)

// isModest says whether a tree is whole as far as its nodes go, and of a size that can
// be compared. Nodes are named by their bytes, so that none is below itself.
func isModest(n tree.Nodes, root tree.Entry) bool {
	type extent struct{ entries, depth int }
	tooLarge := extent{maxTreeEntries + 1, maxTreeDepth + 1}
	known := map[tree.Addr]extent{{}: {}}
	var measure func(at tree.Addr, above int) extent
	measure = func(at tree.Addr, above int) extent {
		if x, ok := known[at]; ok {
			return x
		}
		b, err := n.Node(at)
		if err != nil || above >= maxTreeDepth {
			return tooLarge
		}
		var x extent
		for range tree.NodeEntries(b) {
			x.entries++
		}
		for ref := range tree.Refs(b) {
			below := measure(ref.Addr, above+1)
			x.entries, x.depth = min(x.entries+below.entries, tooLarge.entries), max(x.depth, below.depth)
			if x.entries > maxTreeEntries {
				return tooLarge
			}
		}
		x.depth++
		known[at] = x
		return x
	}
	x := measure(root.Children.Addr, 0)
	return x.entries <= maxTreeEntries && x.depth <= maxTreeDepth
}
