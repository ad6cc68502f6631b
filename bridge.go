package kiln

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker"
	"github.com/kiln-build/kiln/worker/source"
	"github.com/moby/buildkit/solver/pb"
)

// maxRead bounds what a frontend reads of one file.
const maxRead = 32 << 20

// bridge is what the engine does for the frontend of one build.
type bridge struct {
	*build
}

// forwarder is the bridge of a build that can run frontends in images.
type forwarder struct {
	bridge
}

// bridge gives the build's bridge.
func (b *build) bridge() frontend.Bridge {
	if b.forward != nil {
		return forwarder{bridge{b}}
	}
	return bridge{b}
}

// Forward hands a request to the frontend in an image.
func (f forwarder) Forward(ctx context.Context, source, cmdline string, req frontend.Request) (*frontend.Result, bool, error) {
	return f.forward(ctx, f, source, cmdline, req)
}

// RunProgram runs a process on the file system that a graph comes to; what it
// writes there vanishes with it.
func (b bridge) RunProgram(ctx context.Context, p worker.Program) error {
	edges, err := b.admit(ctx, nil, []llb.Edge{p.Root})
	if err != nil {
		return err
	}
	chains, err := b.solve(ctx, edges...)
	if err != nil {
		return err
	}
	p.Root, p.Network = edges[0], b.network(p.Network)
	return b.engine.worker.RunProgram(ctx, b.session, chains[0], p)
}

// NewContainer makes a container for processes that belong to no step. ctx is its
// life as well.
func (b bridge) NewContainer(ctx context.Context, spec worker.ContainerSpec) (*worker.Container, error) {
	spec.Network = b.network(spec.Network)
	return b.engine.worker.NewContainer(ctx, b.session, spec)
}

// At gives the file system of a chain that the build holds.
func (b bridge) At(chain cache.ChainID) frontend.Ref { return &ref{build: b.build, chain: chain} }

// ResolveImage finds an image's digest and config.
func (b bridge) ResolveImage(ctx context.Context, ref string, o frontend.ResolveOptions) (frontend.Image, error) {
	if b.guard.set.Empty() && b.guard.check == nil {
		return b.resolveImage(ctx, ref, o)
	}
	op := &pb.SourceOp{Identifier: "docker-image://" + ref}
	if o.Layout != "" {
		op = &pb.SourceOp{Identifier: "oci-layout://" + ref, Attrs: map[string]string{pb.AttrOCILayoutStoreID: o.Layout}}
	}
	m, err := b.ResolveSource(ctx, op, frontend.SourceOptions{ResolveOptions: o})
	if err != nil {
		return frontend.Image{}, err
	}
	if m.Image != nil {
		return *m.Image, nil
	}
	return frontend.Image{}, &frontend.ReplacedError{Ref: ref, By: m.Op.Identifier}
}

func (b *build) resolveImage(ctx context.Context, ref string, o frontend.ResolveOptions) (frontend.Image, error) {
	name := o.LogName
	if name == "" {
		name = "[internal] load metadata for " + ref
	}
	mode := source.ModeDefault
	if o.Pull {
		mode = source.ModePull
	}
	var image frontend.Image
	err := b.step(name, func() error {
		var r source.Image
		var err error
		if o.Layout != "" {
			r, err = b.engine.worker.ResolveLayout(ctx, b.session, o.Layout, ref, o.Platform)
		} else {
			r, err = b.engine.worker.Images().Resolve(ctx, b.credentials, ref, o.Platform, mode)
		}
		image = frontend.Image{Ref: r.Ref, Digest: r.Digest.String(), Config: r.Config}
		if err == nil {
			frontend.CallOf(ctx).Ask(asked(image, o))
		}
		return err
	})
	return image, err
}

// Solve runs a graph and gives its file system.
func (b bridge) Solve(ctx context.Context, e llb.Edge) (frontend.Ref, error) {
	edges, err := b.admit(ctx, nil, []llb.Edge{e})
	if err != nil {
		return nil, err
	}
	chains, err := b.solve(ctx, edges...)
	if err != nil {
		return nil, err
	}
	frontend.CallOf(ctx).Read(e)
	return &ref{build: b.build, chain: chains[0]}, nil
}

// Warn tells the user something.
func (b bridge) Warn(w frontend.Warning) {
	b.emit(FrontendWarning{Subject: solver.Subject{Vertex: w.Vertex, Time: b.engine.clock()}, Warning: w})
}

// SourceTime tells when the content of a git or http source was made. The policies hold
// for it as for a graph that reads the source: it is asked about where they have it.
func (b bridge) SourceTime(ctx context.Context, v *llb.Vertex) (time.Time, error) {
	edges, err := b.admit(ctx, nil, []llb.Edge{v.Output(0)})
	if err != nil {
		return time.Time{}, err
	}
	return b.engine.worker.SourceTime(ctx, b.session, edges[0].Vertex)
}

var (
	_ frontend.SourceDescriber = bridge{}
	_ frontend.SourceResolver  = bridge{}
	_ frontend.Admitter        = bridge{}
	_ frontend.Attributor      = bridge{}
	_ frontend.CacheReader     = bridge{}
	_ frontend.RangeReader     = (*ref)(nil)
)

// ref is a solved file system.
type ref struct {
	*build
	chain cache.ChainID
}

// Chain is where the file system is in the cache, while the build lasts.
func (r *ref) Chain() cache.ChainID { return r.chain }

// lookup finds a path, following links inside the file system.
func (r *ref) lookup(ctx context.Context, name string) (tree.Entry, error) {
	if err := r.engine.worker.Reader(r.session).Unpack(ctx, r.chain); err != nil {
		return tree.Entry{}, err
	}
	root, err := r.engine.cache.Merged(r.chain)
	if err != nil {
		return tree.Entry{}, err
	}
	found, err := tree.Resolve(r.engine.cache, root, name, true)
	if errors.Is(err, fs.ErrNotExist) {
		return tree.Entry{}, &fs.PathError{Op: "open", Path: name, Err: syscall.ENOENT}
	}
	return found.Entry, err
}

// ReadFile reads a file.
func (r *ref) ReadFile(ctx context.Context, name string) ([]byte, error) {
	f, size, err := r.open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return section(f, name, 0, size)
}

// ReadRange reads at most n bytes of a file from an offset.
func (r *ref) ReadRange(ctx context.Context, name string, offset, n int64) ([]byte, error) {
	if offset < 0 || n < 0 {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrInvalid}
	}
	f, size, err := r.open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return section(f, name, offset, min(n, max(size-offset, 0)))
}

// open opens a file.
func (r *ref) open(ctx context.Context, name string) (*os.File, int64, error) {
	e, err := r.lookup(ctx, name)
	if err != nil {
		return nil, 0, err
	}
	if e.Kind != tree.File {
		return nil, 0, &fs.PathError{Op: "read", Path: name, Err: fs.ErrInvalid}
	}
	f, err := r.engine.cache.Pool().Open(e)
	return f, e.Size, err
}

// section reads n bytes, if they are not too many.
func section(f *os.File, name string, offset, n int64) ([]byte, error) {
	if n > maxRead {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("the file is too large")}
	}
	data := make([]byte, n)
	read, err := f.ReadAt(data, offset)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return data[:read], err
}

// ReadDir lists a folder.
func (r *ref) ReadDir(ctx context.Context, name string) ([]fs.DirEntry, error) {
	dir, err := r.lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	var entries []fs.DirEntry
	for e, err := range tree.ReadDir(r.engine.cache, dir.Children) {
		if err != nil {
			return nil, err
		}
		entries = append(entries, fs.FileInfoToDirEntry(e.Info()))
	}
	return entries, nil
}

// Stat describes a path.
func (r *ref) Stat(ctx context.Context, name string) (fs.FileInfo, error) {
	e, err := r.lookup(ctx, name)
	e.Name = path.Base(name)
	return e.Info(), err
}
