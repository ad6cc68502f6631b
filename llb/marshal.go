package llb

import (
	"fmt"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"
)

// Marshal gives the wire form of the graphs of e and more: every vertex once,
// after its inputs, then an op without a body whose inputs name the results. The
// ops come in an order that the edges alone decide, so equal graphs give equal
// definitions. Scratch has no wire form but that of an empty definition, and so
// may only stand alone.
func Marshal(e Edge, more ...Edge) (*pb.Definition, error) {
	edges := append([]Edge{e}, more...)
	def := &pb.Definition{}
	if e.IsScratch() && len(more) == 0 {
		return def, nil
	}
	terminal := &pb.Op{}
	for i, e := range edges {
		if e.IsScratch() {
			return nil, fmt.Errorf("llb: marshalling: result %d of %d is scratch", i, len(edges))
		}
		if e.Output < 0 || e.Output >= e.Vertex.outputs {
			return nil, fmt.Errorf("llb: marshalling: output %d of %s, which has %d", e.Output, e.Vertex.digest, e.Vertex.outputs)
		}
		terminal.Inputs = append(terminal.Inputs, &pb.Input{Digest: e.Vertex.digest.String(), Index: int64(e.Output)})
	}
	def.Metadata = make(map[string]*pb.OpMetadata)
	sources := newSourceMap()
	final := capSet{}
	final.add(pb.CapConstraints)
	final.add(pb.CapPlatform)
	for _, v := range Walk(edges...) {
		def.Def = append(def.Def, v.raw)
		m := writeMeta(v)
		def.Metadata[v.digest.String()] = m
		sources.add(v)
		final.when(m.IgnoreCache, pb.CapMetaIgnoreCache)
		final.when(m.Description != nil, pb.CapMetaDescription)
		final.when(m.ExportCache != nil, pb.CapMetaExportCache)
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(terminal)
	if err != nil {
		return nil, fmt.Errorf("llb: marshalling the result: %w", err)
	}
	def.Def = append(def.Def, raw)
	def.Metadata[Digest(hash(raw)).String()] = &pb.OpMetadata{Caps: final}
	def.Source = sources.out
	return def, nil
}
