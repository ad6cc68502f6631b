package provenance

import (
	"crypto/sha256"
	"fmt"
	"strconv"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"
)

// graph gives the graph of an edge, and the text that it was compiled from.
func graph(e llb.Edge) (*BuildConfig, *Source, error) {
	def, err := llb.Marshal(e)
	if err != nil {
		return nil, nil, err
	}
	c := buildConfig(e, def)
	return c, source(def, c), nil
}

// buildConfig gives the steps of an edge, whose wire form is def.
func buildConfig(e llb.Edge, def *pb.Definition) *BuildConfig {
	vertices := llb.Walk(e)
	c := &BuildConfig{DigestMapping: make(map[string]string, len(vertices)+1)}
	id := func(i int) string { return "step" + strconv.Itoa(i) }
	for i, v := range vertices {
		c.DigestMapping[v.Digest().String()] = id(i)
	}
	if n := len(def.Def); n > 0 {
		c.DigestMapping[llb.Digest(sha256.Sum256(def.Def[n-1])).String()] = id(len(vertices))
	}
	input := func(in llb.Edge) string {
		return fmt.Sprintf("%s:%d", c.DigestMapping[in.Vertex.Digest().String()], in.Output)
	}
	for i, v := range vertices {
		s := Step{ID: id(i), Op: visible(v.Op()), Inputs: make([]string, 0, len(v.Inputs()))}
		for _, in := range v.Inputs() {
			s.Inputs = append(s.Inputs, input(in))
		}
		c.Definition = append(c.Definition, s)
	}
	if !e.IsScratch() {
		c.Definition = append(c.Definition, Step{ID: id(len(vertices)), Op: &pb.Op{}, Inputs: []string{input(e)}})
	}
	return c
}

// addUsage says what each step has used, where that is known.
func (c *BuildConfig) addUsage(e llb.Edge, used func(llb.Digest) any) {
	for i, v := range llb.Walk(e) {
		c.Definition[i].Usage = used(v.Digest())
	}
}

// source gives the text that a definition was compiled from; nil where it names none.
func source(def *pb.Definition, c *BuildConfig) *Source {
	if def.Source == nil || len(def.Source.Infos) == 0 {
		return nil
	}
	s := &Source{Locations: map[string]*pb.Locations{}}
	for _, info := range def.Source.Infos {
		s.Infos = append(s.Infos, sourceInfo(info))
	}
	for digest, l := range def.Source.Locations {
		if step, ok := c.DigestMapping[digest]; ok {
			s.Locations[step] = l
		}
	}
	return s
}

// sourceInfo gives a file of that text, with the graph of where it was read from.
func sourceInfo(info *pb.SourceInfo) SourceInfo {
	out := SourceInfo{Filename: info.Filename, Language: info.Language, Data: info.Data}
	if len(info.GetDefinition().GetDef()) == 0 {
		return out
	}
	// A client may say anything of where its file is from: what is no graph is left out.
	if from, err := llb.Load(info.Definition); err == nil {
		out.BuildConfig = *buildConfig(from, info.Definition)
	}
	return out
}

// visible gives an op without what only this build knows, and without the names
// and passwords of its URLs.
func visible(op *pb.Op) *pb.Op {
	op = proto.CloneOf(op)
	op.Inputs = nil
	switch o := op.Op.(type) {
	case *pb.Op_Source:
		o.Source.Identifier = Redact(o.Source.Identifier)
		for k, v := range o.Source.Attrs {
			o.Source.Attrs[k] = Redact(v)
		}
		delete(o.Source.Attrs, pb.AttrLocalSessionID)
		delete(o.Source.Attrs, pb.AttrLocalUniqueID)
	case *pb.Op_Exec:
		o.Exec.Network = llb.Unproxied(o.Exec.Network) // the predicate says it elsewhere
		m := o.Exec.Meta
		if m == nil {
			break
		}
		for i, e := range m.Env {
			m.Env[i] = Redact(e)
		}
		if p := m.ProxyEnv; p != nil {
			p.HttpProxy, p.HttpsProxy, p.FtpProxy, p.AllProxy = Redact(p.HttpProxy), Redact(p.HttpsProxy), Redact(p.FtpProxy), Redact(p.AllProxy)
		}
	}
	return op
}
