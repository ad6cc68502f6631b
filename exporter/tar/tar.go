// Package tar writes the root file system of a result as one tarball.
package tar

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/attest"
	"github.com/kiln-build/kiln/exporter/image"
	"github.com/kiln-build/kiln/exporter/layer"
)

// Exporter writes tarballs.
type Exporter struct {
	env  exporter.Env
	opts image.FileOptions
}

var _ exporter.Exporter = (*Exporter)(nil)

// New makes the exporter "tar".
func New(env exporter.Env, attrs map[string]string) (*Exporter, error) {
	opts, err := image.ParseFileOptions(attrs)
	if err != nil {
		return nil, err
	}
	return &Exporter{env: env, opts: opts}, nil
}

// Export writes r, each platform into a folder of its own where there are several.
func (e *Exporter) Export(ctx context.Context, r exporter.Result, p exporter.Progress) (map[string]string, error) {
	if e.env.Target == nil {
		return nil, errors.New("the output needs a destination: name one with dest=")
	}
	split := r.Index()
	if e.opts.Split != nil && *e.opts.Split {
		split = true
	}
	if !split && len(r.Images) != 1 {
		return nil, errors.New("type=tar needs one image: the result has " + strconv.Itoa(len(r.Images)))
	}
	var folders []string // nil where the one image lies at the top
	if split {
		var err error
		if folders, err = image.Folders(r); err != nil {
			return nil, err
		}
	}
	f, err := e.env.Target.File(ctx, nil)
	if err != nil {
		return nil, err
	}
	done := p.Step("sending tarball")
	err = e.write(ctx, f, r, folders)
	done(err)
	if err != nil {
		return nil, errors.Join(err, f.Abort())
	}
	return map[string]string{}, f.Commit()
}

func (e *Exporter) write(ctx context.Context, f exporter.File, r exporter.Result, folders []string) error {
	w := writer(f)
	s := layer.Stream{Files: image.Files(e.env.Cache)}
	for i, img := range r.Images {
		epoch, err := e.opts.Epoch(r, img)
		if err != nil {
			return err
		}
		s.Options = image.SameTime(epoch)
		root, err := image.State(ctx, e.env, img.Root)
		if err != nil {
			return err
		}
		prefix := ""
		if folders != nil {
			prefix = folders[i] + "/"
		}
		if err := s.Add(ctx, w, prefix, root); err != nil {
			return image.GoneFile(e.env.Cache, img.Root, err)
		}
		if err := e.statements(ctx, w, img, root, prefix, epoch); err != nil {
			return err
		}
	}
	if err := s.End(w); err != nil {
		return err
	}
	if b, ok := w.(*bufio.Writer); ok {
		return b.Flush()
	}
	return nil
}

// statements writes the statements about an image's files behind them.
func (e *Exporter) statements(ctx context.Context, w io.Writer, img exporter.Image, root tree.Entry, prefix string, epoch *time.Time) error {
	files, err := attest.Files(ctx, e.env, img, root, attest.Naming{Prefix: e.opts.Prefix})
	if err != nil {
		return err
	}
	made := e.env.Now()
	if epoch != nil {
		made = *epoch
	}
	for _, f := range files {
		// A writer of its own for each file: the stream's end is not this one's.
		t := tar.NewWriter(w)
		h := &tar.Header{Typeflag: tar.TypeReg, Name: prefix + f.Name, Mode: 0o600, Size: int64(len(f.Data)), ModTime: made.Truncate(time.Second)}
		if err := t.WriteHeader(h); err != nil {
			return fmt.Errorf("writing %s: %w", h.Name, err)
		}
		if _, err := t.Write(f.Data); err != nil {
			return fmt.Errorf("writing %s: %w", h.Name, err)
		}
		if err := t.Flush(); err != nil {
			return fmt.Errorf("writing %s: %w", h.Name, err)
		}
	}
	return nil
}

// writer gives f with a buffer, unless it copies in the kernel: then the stream
// gathers what is small by itself.
func writer(f exporter.File) io.Writer {
	if _, ok := f.(io.ReaderFrom); ok {
		return f
	}
	return bufio.NewWriterSize(f, 1<<18)
}
