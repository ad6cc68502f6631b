package journal

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
)

// reportVersion is the first byte of a stored report.
const reportVersion = 1

// Sum is an identity of 32 bytes, in hex where it is text: a key, a digest, a chain.
type Sum [sha256.Size]byte

// MarshalText gives hex digits, and nothing for zeros.
func (s Sum) MarshalText() ([]byte, error) {
	if s == (Sum{}) {
		return nil, nil
	}
	return hex.AppendEncode(nil, s[:]), nil
}

// UnmarshalText reads what MarshalText writes.
func (s *Sum) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*s = Sum{}
		return nil
	}
	sum, err := parseSum(string(b))
	*s = sum
	return err
}

func (s Sum) String() string { return hex.EncodeToString(s[:]) }

func parseSum(s string) (sum Sum, err error) {
	if len(s) != 2*len(sum) {
		return sum, fmt.Errorf("%d digits are no sha256", len(s))
	}
	_, err = hex.Decode(sum[:], []byte(s))
	return sum, err
}

// Report is what became of a build's steps, inputs first.
type Report struct {
	Steps []Step `json:"steps"`
	// Args are the names of the build's arguments (--build-arg).
	Args []string `json:"args,omitempty"`
}

// Step is a vertex of a build and what became of it.
type Step struct {
	Name   string `json:"name"`
	Vertex Sum    `json:"vertex"`
	Kind   string `json:"kind"`
	Inputs []Edge `json:"inputs,omitempty"`
	// Op identifies what the step does, and Does says it: its op, in which values
	// of environment variables and texts of files are hashes. Pin is what a source
	// stood for.
	Op   Sum    `json:"op"`
	Does []byte `json:"does,omitempty"`
	Pin  string `json:"pin,omitempty"`

	Definition Sum            `json:"definition"`
	NoCache    bool           `json:"noCache,omitempty"` // the build asked to run it
	Fresh      bool           `json:"fresh,omitempty"`   // it, or something below it
	Outcome    solver.Outcome `json:"outcome,omitempty"`
	Basis      solver.Basis   `json:"basis,omitempty"`
	Key        Sum            `json:"key"`
	From       string         `json:"from,omitempty"`
	Why        string         `json:"why,omitempty"`
	Contents   []Sum          `json:"contents,omitempty"`
	Outputs    []Sum          `json:"outputs,omitempty"`
	Took       time.Duration  `json:"took,omitempty"`

	// Of a report that was made here: the vertex, and the tree of a local folder.
	vertex *llb.Vertex
	root   tree.Entry
}

// Edge is an output of a step of the same report.
type Edge struct {
	Step   int `json:"step"`
	Output int `json:"output,omitempty"`
}

// Collector makes the report of a build of the reports of its solves. It is for
// one goroutine at a time.
type Collector struct {
	report Report
	number map[llb.Digest]int
}

// Add takes what became of vertices. tree gives the trees of local sources. A
// vertex that ran in one solve of the build, and was found in another, ran.
func (c *Collector) Add(steps []solver.Step, local func(v *llb.Vertex, pin string) (tree.Entry, bool)) {
	if c.number == nil {
		c.number = make(map[llb.Digest]int, len(steps))
	}
	for i := range steps {
		s := &steps[i]
		n, known := c.number[s.Vertex.Digest()]
		if !known {
			n = len(c.report.Steps)
			c.number[s.Vertex.Digest()] = n
			c.report.Steps = append(c.report.Steps, Step{})
		} else if weight[c.report.Steps[n].Outcome] > weight[s.Outcome] {
			continue
		}
		st := c.step(s)
		if s.Pin != "" {
			if root, ok := local(s.Vertex, s.Pin); ok {
				st.root = root
			}
		}
		c.report.Steps[n] = st
	}
}

// weight says which of two outcomes of a vertex in one build is told.
var weight = map[solver.Outcome]int{
	solver.Pending: 0, solver.Unneeded: 1, solver.Hit: 2, solver.MightRun: 3, solver.WouldRun: 3, solver.Stopped: 3, solver.Failed: 4, solver.Ran: 5,
}

func (c *Collector) step(s *solver.Step) Step {
	v := s.Vertex
	st := Step{
		Name: bareAddresses(v.Name()), Vertex: Sum(v.Digest()), Kind: v.Kind(), Op: s.Op, Pin: s.Pin,
		Definition: Sum(s.Definition), NoCache: v.Meta().IgnoreCache, Fresh: s.Fresh,
		Outcome: s.Outcome, Basis: s.Basis, Key: Sum(s.Key), From: s.From, Why: s.Why, Took: s.Took,
		vertex: v,
	}
	if edges := v.Inputs(); len(edges) > 0 {
		st.Inputs = make([]Edge, len(edges))
		for i, e := range edges {
			st.Inputs[i] = Edge{c.number[e.Vertex.Digest()], e.Output}
		}
	}
	for _, id := range s.Contents {
		st.Contents = append(st.Contents, Sum(id))
	}
	for _, id := range s.Outputs {
		st.Outputs = append(st.Outputs, Sum(id))
	}
	return st
}

// address is one in the name of a step.
var address = regexp.MustCompile(`[a-z][a-z0-9+.-]*://[^\s'"]+`)

// bareAddresses leaves out of the addresses in a text what may be secret in them. What
// stands before the @ of an image's is its name.
func bareAddresses(text string) string {
	if !strings.Contains(text, "://") {
		return text
	}
	return address.ReplaceAllStringFunc(text, func(a string) string {
		if !strings.ContainsAny(a, "@?") || strings.HasPrefix(a, "docker-image:") || strings.HasPrefix(a, "oci-layout:") {
			return a
		}
		return BareAddress(a)
	})
}

// BareAddress gives an address without what may be secret in it.
func BareAddress(a string) string {
	u, err := url.Parse(a)
	if err != nil {
		// git@host:path is none, for one.
		return a[strings.LastIndexByte(a, '@')+1:]
	}
	u.User, u.RawQuery = nil, ""
	return u.String()
}

// Report gives what was collected. args are the names of the build's arguments.
func (c *Collector) Report(args []string) *Report {
	c.report.Args = args
	return &c.report
}

// Missed says whether a step ran, or would, of which there was no record.
func (r *Report) Missed() bool {
	return slices.ContainsFunc(r.Steps, func(s Step) bool { return missed(&s) })
}

// name is made of what tells reports apart: names, keys and outcomes. Trees are
// left out: two that differ in times alone are the same to every key.
func (r *Report) name() name {
	b := make([]byte, 0, 256*len(r.Steps))
	for i := range r.Steps {
		s := &r.Steps[i]
		b = append(append(append(b, s.Name...), 0), s.From...)
		b = append(b, 0, byte(s.Outcome), byte(s.Basis))
		b = append(append(append(append(b, s.Vertex[:]...), s.Definition[:]...), s.Key[:]...), s.Pin...)
		for _, o := range s.Outputs {
			b = append(b, o[:]...)
		}
	}
	for _, a := range r.Args {
		b = append(append(b, 0), a...)
	}
	return sha256.Sum256(b)
}

// trees gives the local folders' trees, which are known of a report that was made
// here, by the names under which they are kept.
func (r *Report) trees() iter.Seq2[string, tree.Entry] {
	return func(yield func(string, tree.Entry) bool) {
		for i := range r.Steps {
			s := &r.Steps[i]
			if s.isFolder() && !yield(keptName(s.Pin), s.root) {
				return
			}
		}
	}
}

// isFolder says whether a step is a local folder.
func (s *Step) isFolder() bool { return s.Kind == "source" && solver.IsFolderPin(s.Pin) }

// keptName is the name under which the tree of a local folder is kept.
func keptName(pin string) string { return "journal " + pin }

// op gives what a step does.
func (s *Step) op() (*pb.Op, error) {
	if s.vertex != nil {
		return scrubbed(s.vertex.Op()), nil
	}
	op := new(pb.Op)
	if err := proto.Unmarshal(s.Does, op); err != nil {
		return nil, fmt.Errorf("reading what %s does: %w", s.Name, err)
	}
	return op, nil
}

// scrubbed gives an op without what may be secret or large: the values of
// environment variables and the texts of files are hashes.
func scrubbed(op *pb.Op) *pb.Op {
	op = op.CloneVT()
	op.Inputs = nil
	if x := op.GetExec(); x != nil {
		for i, v := range x.Meta.GetEnv() {
			name, value, _ := strings.Cut(v, "=")
			x.Meta.Env[i] = name + "=" + hash(value)
		}
		x.Meta.ProxyEnv = nil
	}
	for _, a := range op.GetFile().GetActions() {
		if m := a.GetMkfile(); m != nil {
			m.Data = []byte(hash(string(m.Data)))
		}
	}
	return op
}

// hash is enough of a hash to tell two values apart.
func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}

var errLarge = errors.New("the build has too many steps for it")

func (r *Report) encode() ([]byte, error) {
	for i := range r.Steps {
		s := &r.Steps[i]
		if s.vertex == nil {
			continue
		}
		var err error
		if s.Does, err = (proto.MarshalOptions{Deterministic: true}).Marshal(scrubbed(s.vertex.Op())); err != nil {
			return nil, fmt.Errorf("writing what %s does: %w", s.Name, err)
		}
	}
	data, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	out := append([]byte{reportVersion}, s2.Encode(nil, data)...)
	if len(out) > maxReport {
		return nil, errLarge
	}
	return out, nil
}

var errDamaged = errors.New("it is damaged")

// maxDecoded bounds the memory that a damaged report can take.
const maxDecoded = 16 * maxReport

func decodeReport(data []byte) (*Report, error) {
	if len(data) == 0 || data[0] != reportVersion {
		return nil, errors.New("it is of another version")
	}
	if n, err := s2.DecodedLen(data[1:]); err != nil || n > maxDecoded {
		return nil, errDamaged
	}
	body, err := s2.Decode(nil, data[1:])
	if err != nil {
		return nil, errDamaged
	}
	r := new(Report)
	if err := json.Unmarshal(body, r); err != nil {
		return nil, errDamaged
	}
	return r, r.check()
}

// check finds what a report may not say.
func (r *Report) check() error {
	for i := range r.Steps {
		for _, in := range r.Steps[i].Inputs {
			if in.Step < 0 || in.Step >= len(r.Steps) || in.Output < 0 {
				return errDamaged
			}
		}
	}
	return nil
}
