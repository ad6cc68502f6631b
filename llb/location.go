package llb

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/moby/buildkit/solver/pb"
)

// Location is a range of lines, from 1, of a source file.
type Location struct {
	File       *File
	Start, End int
	// StartColumn and EndColumn are where in their lines the range begins and
	// ends; both 0 where whole lines are meant.
	StartColumn, EndColumn int
}

// Range gives the location's lines in their wire form.
func (l Location) Range() *pb.Range {
	return &pb.Range{
		Start: &pb.Position{Line: int32(l.Start), Character: int32(l.StartColumn)},
		End:   &pb.Position{Line: int32(l.End), Character: int32(l.EndColumn)},
	}
}

// At gives the location that a range in its wire form means.
func (f *File) At(r *pb.Range) Location {
	return Location{
		File:  f,
		Start: int(r.GetStart().GetLine()), End: int(r.GetEnd().GetLine()),
		StartColumn: int(r.GetStart().GetCharacter()), EndColumn: int(r.GetEnd().GetCharacter()),
	}
}

// File is the text that vertices were compiled from. It is compared by pointer.
type File struct {
	Name     string
	Language string
	Data     []byte
	// Definition is the graph of the file system that the file was read from; nil
	// where nobody said so. It is passed on as it came: what builds it must Load it.
	Definition *pb.Definition
}

// NewFile gives a file from its wire form.
func NewFile(i *pb.SourceInfo) *File {
	return &File{Name: i.GetFilename(), Language: i.GetLanguage(), Data: i.GetData(), Definition: i.GetDefinition()}
}

// Info gives the file's wire form.
func (f *File) Info() *pb.SourceInfo {
	return &pb.SourceInfo{Filename: f.Name, Language: f.Language, Data: f.Data, Definition: f.Definition}
}

// sourceMap collects the files and locations of a graph that is marshalled.
type sourceMap struct {
	out   *pb.Source
	files map[*File]int32
	texts map[fileText]int32
}

// fileText is the same for two files that say the same and are from the same place.
// What clients say besides of the graph of the place is no difference.
type fileText struct {
	name, language string
	sum            [sha256.Size]byte
}

func newSourceMap() *sourceMap {
	return &sourceMap{
		out:   &pb.Source{Locations: make(map[string]*pb.Locations)},
		files: make(map[*File]int32), texts: make(map[fileText]int32),
	}
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
		i := s.index(l.File)
		if n := len(list); n > 0 && list[n-1].SourceIndex == i {
			list[n-1].Ranges = append(list[n-1].Ranges, l.Range())
			continue
		}
		list = append(list, &pb.Location{SourceIndex: i, Ranges: []*pb.Range{l.Range()}})
	}
	if len(list) > 0 {
		s.out.Locations[v.digest.String()] = &pb.Locations{Locations: list}
	}
}

// index gives a file's number. Two that say the same, as graphs may that came from
// different clients' calls, are one.
func (s *sourceMap) index(f *File) int32 {
	i, ok := s.files[f]
	if ok {
		return i
	}
	// A client's graph may have as many files as fit into it: they are not compared one
	// with another.
	text := f.text()
	if i, ok = s.texts[text]; !ok {
		i = int32(len(s.out.Infos))
		s.out.Infos = append(s.out.Infos, f.Info())
		s.texts[text] = i
	}
	s.files[f] = i
	return i
}

func (f *File) text() fileText {
	h := sha256.New()
	add := func(b []byte) {
		h.Write(binary.AppendUvarint(nil, uint64(len(b))))
		h.Write(b)
	}
	add(f.Data)
	for _, op := range f.Definition.GetDef() {
		add(op)
	}
	return fileText{f.Name, f.Language, [sha256.Size]byte(h.Sum(nil))}
}

// readLocations gives the locations of each vertex, by digest. Each SourceInfo
// becomes one File.
func readLocations(s *pb.Source) (map[string][]Location, error) {
	if s == nil {
		return nil, nil
	}
	files := make([]*File, len(s.Infos))
	for i, info := range s.Infos {
		if info == nil {
			return nil, fmt.Errorf("source file %d is empty", i)
		}
		files[i] = NewFile(info)
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
			file := files[l.SourceIndex]
			if len(l.Ranges) == 0 {
				out[digest] = append(out[digest], Location{File: file})
			}
			for _, r := range l.Ranges {
				out[digest] = append(out[digest], file.At(r))
			}
		}
	}
	return out, nil
}
