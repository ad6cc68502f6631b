package llb

import (
	"fmt"
	"maps"

	"github.com/moby/buildkit/solver/pb"
)

// nameKey is where LLB's description map has a vertex's name.
const nameKey = "llb.customname"

// writeMeta gives the wire form of what is said of v.
func writeMeta(v *Vertex) *pb.OpMetadata {
	m := &v.meta
	out := &pb.OpMetadata{
		IgnoreCache:    m.IgnoreCache,
		Caps:           caps(v),
		ProgressGroup:  m.Group,
		LinuxResources: m.Resources,
	}
	if m.Name != "" || len(m.Description) != 0 {
		out.Description = make(map[string]string, len(m.Description)+1)
		maps.Copy(out.Description, m.Description)
		if m.Name != "" {
			out.Description[nameKey] = m.Name
		}
	}
	if m.ExportCache != nil {
		out.ExportCache = &pb.ExportCache{Value: *m.ExportCache}
	}
	return out
}

func readMeta(in *pb.OpMetadata) (Meta, error) {
	if in == nil {
		return Meta{}, nil
	}
	for c := range in.Caps {
		if !knownCap(c) {
			return Meta{}, fmt.Errorf("it needs the capability %q, which is not known here", c)
		}
	}
	m := Meta{
		Name:        in.Description[nameKey],
		IgnoreCache: in.IgnoreCache,
		Group:       in.ProgressGroup,
		Resources:   in.LinuxResources,
	}
	rest := len(in.Description)
	if _, ok := in.Description[nameKey]; ok {
		rest--
	}
	if rest > 0 {
		m.Description = maps.Clone(in.Description)
		delete(m.Description, nameKey)
	}
	if in.ExportCache != nil {
		m.ExportCache = &in.ExportCache.Value
	}
	return m, nil
}
