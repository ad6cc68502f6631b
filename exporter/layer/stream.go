package layer

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/kiln-build/kiln/cache/tree"
)

// Stream writes the tar streams of trees, without compression, for what keeps
// nothing: uncompressed layers, and plain tarballs of a root file system. Small
// files are read ahead of the writing, in a few pieces of a megabyte; larger ones
// are handed to w's ReadFrom where it has one, so that the kernel copies them.
type Stream struct {
	Files Files
	Options
}

// Write writes the stream of a layer or a state to w.
func (s Stream) Write(ctx context.Context, w io.Writer, root tree.Entry) error {
	if err := s.Add(ctx, w, "", root); err != nil {
		return err
	}
	return s.End(w)
}

// Add writes the entries of a tree with prefix, "" or a path that ends in a
// slash, before their names. A prefix's own entry is written too.
func (s Stream) Add(ctx context.Context, w io.Writer, prefix string, root tree.Entry) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ahead := make(chan *reading, readsAhead)
	var walkErr error
	var group sync.WaitGroup
	group.Go(func() {
		defer close(ahead)
		walkErr = s.plan(prefix, root, func(r *reading) error {
			if r.ready = make(chan struct{}); r.large {
				close(r.ready)
			} else {
				group.Go(func() {
					defer close(r.ready)
					r.buf, r.err = r.read(&s.Files, r.buf[:0])
				})
			}
			select {
			case ahead <- r:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	var err error
	for r := range ahead {
		<-r.ready
		if err == nil {
			if err = r.write(ctx, &s.Files, w); err != nil {
				cancel() // the walk ends
			}
		}
		readings.Put(r)
	}
	group.Wait()
	if err == nil {
		err = walkErr
	}
	return err
}

// readsAhead is how many pieces wait to be written, at most.
const readsAhead = 4

// reading is a piece on its way to be written.
type reading struct {
	piece
	large bool // it has a file that is copied when its turn comes
	buf   []byte
	err   error // of reading the files into buf
	ready chan struct{}
}

var readings = sync.Pool{New: func() any { return new(reading) }}

func newReading() *reading {
	r := readings.Get().(*reading)
	*r = reading{piece: piece{headers: r.headers[:0], parts: r.parts[:0]}, buf: r.buf[:0]}
	return r
}

// plan gives the pieces of a tree in order: those of small files, and between them
// those of a large one each.
func (s Stream) plan(prefix string, root tree.Entry, emit func(*reading) error) error {
	pending := newReading()
	flush := func() error {
		if pending.size == 0 {
			return nil
		}
		r := pending
		pending = newReading()
		return emit(r)
	}
	walker := &walker{nodes: s.Files.Nodes, opts: s.Options, prefix: prefix, emit: func(it item) error {
		if it.file.Size > smallFile {
			if err := flush(); err != nil {
				return err
			}
			pending.large = true
		}
		pending.add(it.path, it.header, it.file, 0, it.file.Size)
		if pending.large || pending.size >= pieceSize {
			return flush()
		}
		return nil
	}}
	if prefix != "" {
		h := header{name: prefix, kind: tar.TypeDir, mode: 0o755, mtime: s.Options.mtime(root.MTime)}
		if err := walker.write(h, prefix, tree.Entry{}); err != nil {
			return err
		}
	}
	if err := walker.walk(root); err != nil {
		return err
	}
	return flush()
}

// End writes what ends a tar stream.
func (s Stream) End(w io.Writer) error {
	_, err := w.Write(zeros[:trailerSize])
	return err
}

// smallFile is the size up to which files are gathered in memory: two system
// calls for each file would cost more than a copy.
const smallFile = 128 << 10

// write writes the piece's bytes.
func (r *reading) write(ctx context.Context, f *Files, w io.Writer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.err != nil {
		return r.err
	}
	if !r.large {
		_, err := w.Write(r.buf)
		return err
	}
	pt := &r.parts[0]
	_, err := w.Write(r.headers)
	if err == nil {
		err = pt.copy(ctx, f, w)
	}
	if err != nil {
		return &FileError{Path: pt.path, Err: err}
	}
	_, err = w.Write(zeros[:pt.pad])
	return err
}

// copySlice is how much is copied between two looks at whether it is still wanted.
const copySlice = 32 << 20

func (pt *part) copy(ctx context.Context, f *Files, w io.Writer) error {
	r, err := pt.open(f)
	if err != nil {
		return err
	}
	defer r.Close()
	for left := pt.n; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.Copy(w, io.LimitReader(r, min(left, copySlice)))
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("the file is shorter than its tree says: %w", io.ErrUnexpectedEOF)
		}
		left -= n
	}
	return nil
}
