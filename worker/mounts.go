package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/executor"
	"github.com/kiln-build/kiln/worker/fileop"
	"github.com/kiln-build/kiln/worker/layer"
	"github.com/moby/buildkit/solver/pb"
)

// mounted is what a step sees, and what becomes of it.
type mounted struct {
	w        *Worker
	job      *solver.Job
	dir      string // upper and work folders, below the state folder's tmp
	root     executor.Overlay
	mounts   []executor.Mount
	seen     []executor.Mount // by the op's mounts; zero where there is nothing to see
	left     []output         // by the op's mounts: what the step may write, or what it sees
	outs     map[int64]output
	cleanup  []func()
	caches   map[string]string // folders of cache mounts of this step, by key
	keys     *keys
	prepared int // upper folders made
}

// output is what an output of a step is made of.
type output struct {
	chain cache.ChainID
	upper string     // empty: the chain itself
	below tree.Entry // the chain's state
}

// mount prepares everything that a step sees.
func (w *Worker) mount(ctx context.Context, job *solver.Job, op *pb.ExecOp) (_ *mounted, err error) {
	dir, err := os.MkdirTemp(w.cache.Path("tmp"), "exec-")
	if err != nil {
		return nil, err
	}
	m := &mounted{w: w, job: job, dir: dir, outs: make(map[int64]output), caches: make(map[string]string)}
	m.cleanup = append(m.cleanup, func() { cache.RemoveAll(dir) })
	defer func() {
		if err != nil {
			err = m.failed(ctx, op, err)
			m.release()
		}
	}()
	if err := m.acquireCaches(ctx, op.Mounts); err != nil {
		return nil, err
	}
	rooted := false
	for _, mnt := range op.Mounts {
		if mnt.Dest == pb.RootMount {
			if mnt.MountType != pb.MountType_BIND {
				return nil, fmt.Errorf("invalid mount type %s for %s", mnt.MountType, mnt.Dest)
			}
			rooted = true
		}
		before := len(m.mounts)
		m.left = append(m.left, output{})
		if err := m.add(ctx, mnt, op.Meta.Cwd); err != nil {
			return nil, fmt.Errorf("mount %s: %w", mnt.Dest, err)
		}
		var seen executor.Mount
		switch {
		case mnt.Dest == pb.RootMount:
			seen = executor.Mount{Dest: mnt.Dest, Overlay: &m.root}
		case len(m.mounts) > before:
			seen = m.mounts[before]
		}
		m.seen = append(m.seen, seen)
	}
	if !rooted {
		return nil, errors.New("an exec op without a mount at /")
	}
	// Parents are mounted before what is in them.
	slices.SortStableFunc(m.mounts, func(a, b executor.Mount) int { return cmp.Compare(a.Dest, b.Dest) })
	return m, nil
}

func (m *mounted) add(ctx context.Context, mnt *pb.Mount, cwd string) error {
	dest := destOf(mnt, cwd)
	switch mnt.MountType {
	case pb.MountType_BIND:
		return m.bind(ctx, mnt, dest)
	case pb.MountType_CACHE:
		return m.cacheMount(ctx, mnt, dest)
	case pb.MountType_TMPFS:
		t := &executor.Tmpfs{Size: mnt.TmpfsOpt.GetSize()}
		m.mounts = append(m.mounts, executor.Mount{Dest: dest, Tmpfs: t, ReadOnly: mnt.Readonly})
		return nil
	case pb.MountType_SECRET:
		return m.secret(ctx, mnt, dest)
	case pb.MountType_SSH:
		return m.ssh(ctx, mnt, dest)
	}
	return fmt.Errorf("the mount type %s is not known", mnt.MountType)
}

// bind mounts an input. What a step may write goes to an upper folder, which is
// an output or is thrown away.
func (m *mounted) bind(ctx context.Context, mnt *pb.Mount, dest string) error {
	id, err := inputOf(m.job.Vertex, m.job.Inputs, mnt.Input)
	if err != nil {
		return err
	}
	isRoot := mnt.Dest == pb.RootMount
	isOutput := mnt.Output != int64(pb.SkipOutput)
	hasInput := mnt.Input != int64(pb.Empty)
	if mnt.Readonly && hasInput && !isRoot {
		if !isOutput {
			return m.look(ctx, mnt, id, dest)
		}
		if id, err = m.w.solid(ctx, m.job, id); err != nil {
			return err
		}
		m.outs[mnt.Output] = output{chain: id}
		lower, err := m.w.lower(ctx, m.job, id)
		if err != nil {
			return err
		}
		m.overlay(dest, mnt, executor.Overlay{Lower: lower, ReadOnly: true})
		return nil
	}
	if id, err = m.w.solid(ctx, m.job, id); err != nil {
		return err
	}
	o, err := m.writable(ctx, id)
	if err != nil {
		return err
	}
	if isOutput {
		m.outs[mnt.Output] = o.output
	}
	m.left[len(m.left)-1] = o.output
	o.overlay.ReadOnly = mnt.Readonly
	if isRoot {
		m.root = o.overlay
		return nil
	}
	m.overlay(dest, mnt, o.overlay)
	return nil
}

func (m *mounted) overlay(dest string, mnt *pb.Mount, o executor.Overlay) {
	m.mounts = append(m.mounts, executor.Mount{Dest: dest, Overlay: &o, Selector: mnt.Selector, ReadOnly: mnt.Readonly})
}

// look mounts what a step only reads. Of a folder of the user's no more is
// captured than the part that is selected.
func (m *mounted) look(ctx context.Context, mnt *pb.Mount, id cache.ChainID, dest string) error {
	t, err := m.w.localOf(m.job, id)
	if err != nil {
		return err
	}
	if err := m.checkSelector(ctx, mnt, id); err != nil {
		return err
	}
	mount := executor.Mount{Dest: dest, Overlay: &executor.Overlay{ReadOnly: true}, Selector: mnt.Selector, ReadOnly: true}
	if t != nil && path.Join("/", mnt.Selector) != "/" {
		if id, mount.Selector, err = m.w.part(ctx, t, mnt.Selector); err != nil {
			return err
		}
	} else if id, err = m.w.solid(ctx, m.job, id); err != nil {
		return err
	}
	if mount.Overlay.Lower, err = m.w.lower(ctx, m.job, id); err != nil {
		return err
	}
	m.mounts = append(m.mounts, mount)
	return nil
}

// checkSelector says clearly that a part that a step wants to read is not there.
func (m *mounted) checkSelector(ctx context.Context, mnt *pb.Mount, id cache.ChainID) error {
	selector := path.Join("/", mnt.Selector)
	if selector == "/" {
		return nil
	}
	root, err := m.w.state(ctx, m.job, id)
	if err != nil {
		return err
	}
	if _, err = tree.Resolve(m.w.cache, root, selector, true); errors.Is(err, fs.ErrNotExist) {
		return checksumError(root, &NotFoundError{Path: selector})
	}
	return err
}

// part captures what is at a path of a folder, and gives a chain that has it at
// its root, or, where it is a file, the name that it has there.
func (w *Worker) part(ctx context.Context, t *localTree, selector string) (cache.ChainID, string, error) {
	r, err := tree.Resolve(w.cache, t.root, selector, true)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = &NotFoundError{Path: path.Join("/", selector)}
		}
		return cache.ChainID{}, "", err
	}
	root, at, name := r.Entry, r.Path, ""
	if root.Kind != tree.Dir {
		root, name = fileop.Scratch, r.Entry.Name
		if root.Children, err = tree.PutDir(w.cache, []tree.Entry{r.Entry}); err != nil {
			return cache.ChainID{}, "", err
		}
		at = strings.TrimSuffix(strings.TrimSuffix(r.Path, name), "/")
	}
	root.Name = ""
	id, err := w.captured(ctx, t, at, root)
	return id, name, err
}

// writable is an overlay that a step may write to.
type writable struct {
	overlay executor.Overlay
	output  output
}

func (m *mounted) writable(ctx context.Context, id cache.ChainID) (out writable, err error) {
	if out.overlay.Lower, err = m.w.lower(ctx, m.job, id); err != nil {
		return out, err
	}
	below, err := m.w.state(ctx, m.job, id)
	if err != nil {
		return out, err
	}
	m.prepared++
	dir := filepath.Join(m.dir, fmt.Sprint(m.prepared))
	out.overlay.Upper, out.overlay.Work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{dir, out.overlay.Upper, out.overlay.Work} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return out, err
		}
	}
	// The root directory that a step sees is the upper folder itself.
	if err := layer.SetMeta(out.overlay.Upper, below); err != nil {
		return out, err
	}
	out.output = output{chain: id, upper: out.overlay.Upper, below: below}
	return out, nil
}

// outputs makes chains of what the step left.
func (m *mounted) outputs(ctx context.Context) ([]cache.ChainID, error) {
	ids := make([]cache.ChainID, len(m.outs))
	for i := range ids {
		o, ok := m.outs[int64(i)]
		if !ok {
			return nil, fmt.Errorf("missing output index %d", i)
		}
		var err error
		if ids[i], err = m.chain(ctx, o); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// chain makes a chain of what the step left in one place.
func (m *mounted) chain(ctx context.Context, o output) (cache.ChainID, error) {
	if o.upper == "" {
		return o.chain, nil
	}
	l, err := m.w.folders.Adopt(ctx, o.upper, o.below)
	if err != nil {
		return cache.ChainID{}, err
	}
	return m.w.extend(o.chain, l)
}

// release undoes what mount did, last things first.
func (m *mounted) release() {
	for _, f := range slices.Backward(m.cleanup) {
		f()
	}
	m.cleanup = nil
}
