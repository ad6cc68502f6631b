package llb

import (
	"testing"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"
)

// TestFilesKeepWhereTheyAreFrom takes a graph over the wire and back: the columns
// of a location and the graph of its file are on the other side.
func TestFilesKeepWhereTheyAreFrom(t *testing.T) {
	folder, err := Source("local://context", nil)
	if err != nil {
		t.Fatal(err)
	}
	from, err := Marshal(folder.Output(0))
	if err != nil {
		t.Fatal(err)
	}
	file := &File{Name: "Dockerfile", Language: "Dockerfile", Data: []byte("FROM x"), Definition: from}
	at := Location{File: file, Start: 3, End: 4, StartColumn: 1, EndColumn: 7}
	v, err := Source("docker-image://docker.io/library/x:latest", nil, WithMeta(Meta{Locations: []Location{at}}))
	if err != nil {
		t.Fatal(err)
	}
	def, err := Marshal(v.Output(0))
	if err != nil {
		t.Fatal(err)
	}
	e, err := Load(def)
	if err != nil {
		t.Fatal(err)
	}
	got := e.Vertex.Meta().Locations
	if len(got) != 1 || !proto.Equal(got[0].Range(), at.Range()) || got[0].StartColumn != 1 {
		t.Fatalf("got the locations %v, want %v", got, at)
	}
	if !proto.Equal(got[0].File.Info(), file.Info()) || !proto.Equal(got[0].File.Definition, from) {
		t.Errorf("got the file %v, want %v", got[0].File.Info(), file.Info())
	}
	if empty := NewFile(&pb.SourceInfo{}); empty.Definition != nil {
		t.Errorf("a file of nowhere has the graph %v", empty.Definition)
	}
}

// TestFilesOfAGraph has files that say the same, as those of different calls do, become
// one, and all others stay what they are.
func TestFilesOfAGraph(t *testing.T) {
	from := &pb.Definition{Def: [][]byte{[]byte("a"), []byte("b")}}
	files := []*File{
		{Name: "Dockerfile", Language: "Dockerfile", Data: []byte("FROM x"), Definition: from},
		{Name: "Dockerfile", Language: "Dockerfile", Data: []byte("FROM x"), Definition: proto.Clone(from).(*pb.Definition)},
		{Name: "other", Language: "Dockerfile", Data: []byte("FROM x"), Definition: from},
		{Name: "Dockerfile", Language: "other", Data: []byte("FROM x"), Definition: from},
		{Name: "Dockerfile", Language: "Dockerfile", Data: []byte("FROM y"), Definition: from},
		{Name: "Dockerfile", Language: "Dockerfile", Data: []byte("FROM x")},
		{Name: "Dockerfile", Language: "Dockerfile", Data: []byte("FROM x"), Definition: &pb.Definition{Def: [][]byte{[]byte("ab")}}},
		{Name: "Dockerfile", Language: "Dockerfile", Data: []byte("FROM xa"), Definition: &pb.Definition{Def: [][]byte{[]byte("b")}}},
	}
	var at []Location
	for n, f := range files {
		at = append(at, Location{File: f, Start: n + 1, End: n + 1})
	}
	v, err := Source("docker-image://docker.io/library/x:latest", nil, WithMeta(Meta{Locations: at}))
	if err != nil {
		t.Fatal(err)
	}
	def, err := Marshal(v.Output(0))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(def.Source.Infos), len(files)-1; got != want {
		t.Errorf("the graph has %d files, want %d", got, want)
	}
	e, err := Load(def)
	if err != nil {
		t.Fatal(err)
	}
	for n, l := range e.Vertex.Meta().Locations {
		if l.Start != n+1 || !proto.Equal(l.File.Info(), files[n].Info()) {
			t.Errorf("location %d is line %d of %v", n, l.Start, l.File.Info())
		}
	}
}
