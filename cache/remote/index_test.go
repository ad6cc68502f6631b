package remote

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
)

// sample is an index with two records on one chain, under keys 1 and 2.
func sample(used int64) *index {
	return &index{
		Version: version,
		Layers: []layer{
			{ID: id(cache.ImageLayerID(blob.Digest{1})), DiffID: blob.Digest{1}, Origins: []string{"host/base"}},
			{ID: id{2}, DiffID: blob.Digest{2}, Held: true, Blobs: []blob.Descriptor{{MediaType: "tar", Digest: blob.Digest{12}, Size: 5}}},
		},
		Chains: []link{{-1, 0}, {0, 1}},
		Records: []record{
			{Keys: []id{{1}}, Outputs: []int{0}, Name: "one", Used: used},
			{Keys: []id{{2}, {3}}, Outputs: []int{1, -1}, Name: "two", Used: used},
		},
	}
}

func TestDecode(t *testing.T) {
	good, err := json.Marshal(sample(1))
	if err != nil {
		t.Fatal(err)
	}
	x, err := decode(good)
	if err != nil || len(x.Records) != 2 || x.Records[1].Keys[1] != (id{3}) || !x.Layers[1].Held {
		t.Fatalf("got %+v, %v", x, err)
	}
	for name, change := range map[string]func(x *index){
		"another version":          func(x *index) { x.Version = 2 },
		"a layer without a diffID": func(x *index) { x.Layers[0].DiffID = blob.Digest{} },
		"a negative blob":          func(x *index) { x.Layers[1].Blobs[0].Size = -1 },
		"a huge blob":              func(x *index) { x.Layers[1].Blobs[0].Size = 1 << 50 },
		"many origins":             func(x *index) { x.Layers[1].Origins = make([]string, 1000) },
		"a chain that has a cycle": func(x *index) { x.Chains[0].Parent = 1 },
		"a chain on itself":        func(x *index) { x.Chains[0].Parent = 0 },
		"a layer beyond the end":   func(x *index) { x.Chains[0].Layer = 2 },
		"a record beyond the end":  func(x *index) { x.Records[0].Outputs[0] = 2 },
		"a record below the start": func(x *index) { x.Records[0].Outputs[0] = -2 },
		"a record without a key":   func(x *index) { x.Records[0].Keys = nil },
		"a time before 1970":       func(x *index) { x.Records[0].Created = -1 },
	} {
		x := sample(1)
		change(x)
		data, err := json.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		var format *FormatError
		if _, err := decode(data); !errors.As(err, &format) {
			t.Errorf("%s: got %v, want a FormatError", name, err)
		}
	}
}

func TestDeepChainIsRefused(t *testing.T) {
	x := sample(1)
	for range maxDepth {
		x.Chains = append(x.Chains, link{len(x.Chains) - 1, 1})
	}
	if err := x.check(-1); err == nil {
		t.Error("a chain of more layers than the bound was taken")
	}
}

func TestMerge(t *testing.T) {
	b := newBuilder()
	base := b.layer(layer{ID: id(cache.ImageLayerID(blob.Digest{1})), DiffID: blob.Digest{1}, Origins: []string{"other/base"}})
	b.record(record{Keys: []id{{2}}, Outputs: []int{b.link(-1, base)}, Name: "new two", Used: 100})
	b.merge(sample(50), 10)
	if err := b.check(-1); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range b.Records {
		names = append(names, r.Name)
	}
	if !slices.Equal(names, []string{"new two", "one", "two"}) {
		t.Errorf("records %q", names)
	}
	// The old record keeps the key that the new one does not have.
	if two := b.Records[2]; !slices.Equal(two.Keys, []id{{3}}) || two.Outputs[1] != -1 || b.Chains[two.Outputs[0]].Parent != 0 {
		t.Errorf("the old record became %+v", two)
	}
	if len(b.Layers) != 2 || !slices.Equal(b.Layers[0].Origins, []string{"other/base", "host/base"}) {
		t.Errorf("layers %+v", b.Layers)
	}
	before := len(b.Records)
	old := sample(5)
	old.Records[0].Keys = []id{{9}}
	b.merge(old, 10)
	if len(b.Records) != before {
		t.Error("a record was kept that nobody had used for long")
	}
}

func FuzzDecode(f *testing.F) {
	good, err := json.Marshal(sample(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"chains":[{"parent":-1,"layer":0}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := decode(data)
		if err != nil {
			return
		}
		b := newBuilder()
		b.merge(x, 0)
		if err := b.check(-1); err != nil {
			t.Errorf("what was merged does not pass: %v", err)
		}
	})
}
