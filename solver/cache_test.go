package solver

import (
	"context"
	"fmt"
	"testing"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/llb"
)

// layerWorker runs each op by putting a folder, named after the op, on top of its
// first input, in a cache that is on disk.
type layerWorker struct {
	*fakeWorker
	disk *cache.Cache
}

func (w layerWorker) Run(ctx context.Context, job *Job) ([]cache.ChainID, error) {
	if _, err := w.fakeWorker.Run(ctx, job); err != nil {
		return nil, err
	}
	root := tree.Entry{Kind: tree.Dir, Mode: 0o755}
	ref, err := tree.PutDir(w.disk, []tree.Entry{{Name: nameOf(job.Vertex), Kind: tree.Dir, Mode: 0o755}})
	if err != nil {
		return nil, err
	}
	root.Children = ref
	id := cache.TreeLayerID(root)
	if err := w.disk.PutLayer(cache.Layer{ID: id, Root: root}); err != nil {
		return nil, err
	}
	var parent cache.ChainID
	if len(job.Inputs) > 0 {
		parent = job.Inputs[0]
	}
	chain, err := w.disk.Extend(parent, id)
	if err != nil {
		return nil, err
	}
	return []cache.ChainID{chain}, nil
}

// On a real cache records outlive the process, and a layer that is forgotten is
// made again with all that stands on it.
func TestOnDisk(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	e := source(t, "image")
	for i := range 5 {
		e = step(t, fmt.Sprint("step", i), e)
	}
	build := func(forget string) (w layerWorker) {
		t.Helper()
		disk, err := cache.Open(ctx, dir, cache.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := disk.Close(); err != nil {
				t.Error(err)
			}
		}()
		w = layerWorker{newFakeWorker(newFakeCache()), disk}
		s := New(disk, w, Options{Lease: func() Lease { return disk.Lease() }, Durations: disk.Bucket("time")})
		defer s.Close()
		out, err := s.Solve(ctx, Request{Edges: []llb.Edge{e}})
		if err != nil {
			t.Fatal(err)
		}
		layers, err := disk.Layers(out[0])
		if err != nil || len(layers) != 6 {
			t.Fatalf("%d layers, %v; want 6", len(layers), err)
		}
		if forget != "" {
			if err := s.ForgetLayer(layers[3].ID); err != nil {
				t.Fatal(err)
			}
			clear(w.runs)
			if _, err := s.Solve(ctx, Request{Edges: []llb.Edge{e}}); err != nil {
				t.Fatal(err)
			}
		}
		return w
	}
	if w := build(""); w.ran("step4") != 1 || w.ran("image") != 1 {
		t.Errorf("the first build ran %v", w.runs)
	}
	if w := build(""); len(w.runs) != 0 {
		t.Errorf("after a restart it ran %v, want nothing", w.runs)
	}
	// Layer 3 is of step 2: what is below it stays.
	w := build("step2")
	for i, want := range []int{0, 0, 1} {
		if got := w.ran(fmt.Sprint("step", i)); got != want {
			t.Errorf("after the layer of step2 was forgotten, step%d ran %d times, want %d", i, got, want)
		}
	}
	if w.ran("image") != 0 {
		t.Error("the image was asked for, though a record stood above it")
	}
}
