package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/fileop"
	"github.com/kiln-build/kiln/worker/layer"
	"github.com/moby/buildkit/solver/pb"
)

// runFile runs a file operation. An input that copies only read may be a local
// folder, whose files are then captured one by one as they are copied; one that
// actions stand on is captured whole.
func (w *Worker) runFile(ctx context.Context, job *solver.Job, op *pb.FileOp) ([]cache.ChainID, error) {
	base := make([]bool, len(job.Inputs))
	for _, a := range op.Actions {
		if a.Input >= 0 && a.Input < int64(len(base)) {
			base[a.Input] = true
		}
	}
	f := &files{w: w, locals: make([]*localTree, len(job.Inputs))}
	chains := make([]cache.ChainID, len(job.Inputs))
	states := make([]tree.Entry, len(job.Inputs))
	for i, id := range job.Inputs {
		var err error
		if chains[i] = id; base[i] {
			chains[i], err = w.solid(ctx, job, id)
		} else {
			f.locals[i], err = w.localOf(job, id)
		}
		if err != nil {
			return nil, err
		}
		if states[i], err = w.state(ctx, job, chains[i]); err != nil {
			return nil, err
		}
		if f.locals[i] == nil && w.doubt.Load() {
			if err := w.check(ctx, chains[i]); err != nil {
				return nil, err
			}
		}
	}
	f.bringer = newBringer(ctx, w.cache.Pool(), func(i int) *localTree { return f.locals[i] })
	run := fileop.Op{Nodes: w.cache, Inputs: states, Files: f, Now: w.clock().UnixNano()}
	if len(op.Actions) > 1 {
		// Each action makes a tree, most of which only the next one reads.
		run.Nodes = tree.NewSketch(w.cache)
	}
	outs, err := run.Run(ctx, op.Actions)
	if err != nil {
		return nil, w.failedAction(job, &run, chains, w.lost(ctx, err, chains))
	}
	ids := make([]cache.ChainID, len(outs))
	for i, out := range outs {
		if err := keep(&run, out); err != nil {
			return nil, err
		}
		if out.Base >= 0 {
			ids[i] = chains[out.Base]
		}
		for _, root := range out.Layers {
			l := cache.Layer{ID: cache.TreeLayerID(root), Root: root}
			if ids[i], err = w.extend(ids[i], l); err != nil {
				return nil, err
			}
		}
		if err := w.cache.SetMerged(ids[i], out.State); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// keep stores the trees of an output, where they are a sketch yet.
func keep(run *fileop.Op, out fileop.Output) error {
	d, ok := run.Nodes.(*tree.Sketch)
	if !ok {
		return nil
	}
	return errors.Join(d.Keep(out.Layers...), d.Keep(out.State))
}

// files moves the contents of files for a file operation.
type files struct {
	*bringer
	w      *Worker
	locals []*localTree // by input; nil is one whose files are in the pool
}

var _ fileop.Files = (*files)(nil)

// Foreign makes files a fileop.Files, as do the methods that follow.
func (f *files) Foreign(input int) bool { return f.locals[input] != nil }

// Bring begins a transfer.
func (f *files) Bring(_ context.Context, t fileop.Transfer) error {
	return f.bring(transfer{input: t.Input, path: t.Path, from: t.From, to: t.To})
}

// Settle waits for the transfers.
func (f *files) Settle() error { return f.settle() }

// Put stores a small file.
func (f *files) Put(ctx context.Context, e tree.Entry, data []byte) error {
	return f.pool.Put(ctx, e, bytes.NewReader(data))
}

// Open reads a file. One of a folder is captured first, so that what is read is
// what was scanned.
func (f *files) Open(ctx context.Context, input int, path string, e tree.Entry) (io.ReadCloser, error) {
	if input >= 0 && f.locals[input] != nil {
		b := newBringer(ctx, f.pool, f.local)
		if err := b.bring(transfer{input: input, path: path, from: e, to: e}); err != nil {
			return nil, err
		}
		if err := b.settle(); err != nil {
			return nil, err
		}
	} else if err := f.Settle(); err != nil {
		// The file may be one that an earlier action brings.
		return nil, err
	}
	file, err := f.pool.Open(e)
	if err != nil {
		return nil, err
	}
	return file, nil
}

// Unpack unpacks an archive.
func (f *files) Unpack(ctx context.Context, a fileop.Archive) (fileop.Unpacked, bool, error) {
	r, err := f.Open(ctx, a.Input, a.Path, a.Entry)
	if err != nil {
		return fileop.Unpacked{}, false, err
	}
	defer r.Close()
	is, err := isArchive(r)
	if err != nil || !is {
		return fileop.Unpacked{}, false, err
	}
	if r, err = f.pool.Open(a.Entry); err != nil {
		return fileop.Unpacked{}, false, err
	}
	defer r.Close()
	stream, err := decompress(r)
	if err != nil {
		return fileop.Unpacked{}, false, err
	}
	u := fileop.Unpacked{Implicit: make(map[string]bool)}
	o := layer.UnpackOptions{Archive: true, TagBase: a.At, Implicit: func(p string) { u.Implicit[p] = true }}
	if a.Owner != nil {
		o.Owner = func(string, uint32, uint32) (uint32, uint32) { return a.Owner.UID, a.Owner.GID }
	}
	if u.Root, _, err = layer.Unpack(ctx, f.w.cache, stream, o); err != nil {
		return u, false, fmt.Errorf("%s: %w", a.Path, err)
	}
	return u, true, nil
}
