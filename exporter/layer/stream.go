package layer

import (
	"archive/tar"
	"context"
	"fmt"
	"io"

	"github.com/kiln-build/kiln/cache/tree"
)

// Stream writes the tar streams of trees, without compression, for what keeps
// nothing: uncompressed layers, and plain tarballs of a root file system. It
// holds one piece of headers in memory, and hands files to w's ReadFrom where it
// has one, so that the kernel copies them.
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
	var pending piece
	flush := func() error {
		err := pending.write(ctx, &s.Files, w)
		pending = piece{headers: pending.headers[:0], parts: pending.parts[:0]}
		return err
	}
	walker := &walker{nodes: s.Files.Nodes, opts: s.Options, prefix: prefix, emit: func(it item) error {
		pending.add(it.path, it.header, it.file, 0, it.file.Size)
		if pending.size >= pieceSize {
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
func (p *piece) write(ctx context.Context, f *Files, w io.Writer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var buf []byte
	rest := p.headers
	for i := range p.parts {
		pt := &p.parts[i]
		buf = append(buf, rest[:pt.headers]...)
		rest = rest[pt.headers:]
		if pt.n == 0 {
			continue
		}
		var err error
		if pt.n <= smallFile {
			buf, err = pt.read(f, buf)
		} else {
			if _, err = w.Write(buf); err == nil {
				buf = buf[:0]
				err = pt.copy(ctx, f, w)
			}
		}
		if err != nil {
			return &FileError{Path: pt.path, Err: err}
		}
		buf = append(buf, zeros[:pt.pad]...)
	}
	_, err := w.Write(buf)
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
