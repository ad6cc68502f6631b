package llb

import (
	"errors"
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

// sourceMap collects the files and locations of a graph that is marshalled.
type sourceMap struct {
	out   *pb.Source
	files map[*File]int32
}

func newSourceMap() *sourceMap {
	return &sourceMap{out: &pb.Source{Locations: make(map[string]*pb.Locations)}, files: make(map[*File]int32)}
}

func (s *sourceMap) add(v *Vertex) {
	if len(v.meta.Locations) == 0 {
		return
	}
	var list []*pb.Location
	for _, l := range v.meta.Locations {
		if l.File == nil {
			continue
		}
		i, ok := s.files[l.File]
		if !ok {
			i = int32(len(s.out.Infos))
			s.files[l.File] = i
			s.out.Infos = append(s.out.Infos, &pb.SourceInfo{Filename: l.File.Name, Language: l.File.Language, Data: l.File.Data})
		}
		r := &pb.Range{Start: &pb.Position{Line: int32(l.Start)}, End: &pb.Position{Line: int32(l.End)}}
		if n := len(list); n > 0 && list[n-1].SourceIndex == i {
			list[n-1].Ranges = append(list[n-1].Ranges, r)
			continue
		}
		list = append(list, &pb.Location{SourceIndex: i, Ranges: []*pb.Range{r}})
	}
	if len(list) > 0 {
		s.out.Locations[v.digest.String()] = &pb.Locations{Locations: list}
	}
}

// readLocations gives the locations of each vertex, by digest. Each SourceInfo
// becomes one File. The definition that a SourceInfo may say it came from is
// left out: nothing here asks for it.
func readLocations(s *pb.Source) (map[string][]Location, error) {
	if s == nil {
		return nil, nil
	}
	files := make([]*File, len(s.Infos))
	for i, info := range s.Infos {
		if info == nil {
			return nil, fmt.Errorf("source file %d is empty", i)
		}
		files[i] = &File{Name: info.Filename, Language: info.Language, Data: info.Data}
	}
	out := make(map[string][]Location, len(s.Locations))
	for digest, locations := range s.Locations {
		for _, l := range locations.GetLocations() {
			if l == nil {
				return nil, errors.New("an empty source location")
			}
			if l.SourceIndex < 0 || int(l.SourceIndex) >= len(files) {
				return nil, fmt.Errorf("a location of %s is in source file %d of %d", digest, l.SourceIndex, len(files))
			}
			if len(l.Ranges) == 0 {
				out[digest] = append(out[digest], Location{File: files[l.SourceIndex]})
			}
			for _, r := range l.Ranges {
				out[digest] = append(out[digest], Location{
					File:  files[l.SourceIndex],
					Start: int(r.GetStart().GetLine()),
					End:   int(r.GetEnd().GetLine()),
				})
			}
		}
	}
	return out, nil
}
