// Package local writes the root file system of a result into a folder.
//
// What is in the folder stays, unless the result has something of that name. The
// files belong to the user whom kiln runs as, whatever owner they have in the
// image, as with BuildKit. Every name is looked up in an open directory and no
// link is followed on the way, so that nothing is written outside of the folder,
// whatever the folder or the result hold.
package local

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/attest"
	"github.com/kiln-build/kiln/exporter/image"
)

// Exporter writes folders.
type Exporter struct {
	env    exporter.Env
	opts   image.FileOptions
	mirror bool // remove what the result does not have
}

var _ exporter.Exporter = (*Exporter)(nil)

// New makes the exporter "local".
func New(env exporter.Env, attrs map[string]string) (*Exporter, error) {
	opts, err := image.ParseFileOptions(attrs)
	if err != nil {
		return nil, err
	}
	e := &Exporter{env: env, opts: opts}
	switch v := attrs["mode"]; v {
	case "", "copy":
	case "delete":
		e.mirror = true
	default:
		return nil, fmt.Errorf("exporter option mode=%s: want copy or delete", v)
	}
	return e, nil
}

// Export writes r, each platform into a folder of its own where there are several.
func (e *Exporter) Export(ctx context.Context, r exporter.Result, p exporter.Progress) (map[string]string, error) {
	if e.env.Target == nil {
		return nil, errors.New("the output needs a destination: name a folder with dest=")
	}
	folder, err := e.env.Target.Folder(ctx)
	if err != nil {
		return nil, err
	}
	if err := e.write(ctx, folder.Path(), r, p); err != nil {
		return nil, errors.Join(fmt.Errorf("writing to the folder %s: %w", folder.Path(), err), folder.Abort())
	}
	return map[string]string{}, folder.Commit()
}

func (e *Exporter) write(ctx context.Context, path string, r exporter.Result, p exporter.Progress) error {
	split := r.Index()
	if e.opts.Split != nil {
		split = *e.opts.Split
	}
	folders, err := image.Folders(r)
	if err != nil {
		return err
	}
	root, err := openRoot(path)
	if err != nil {
		return fmt.Errorf("opening the output folder: %w", err)
	}
	defer root.Close()
	w := &writer{files: image.Files(e.env.Cache), root: root, uid: os.Getuid(), gid: os.Getgid()}
	if len(r.Images) > 1 && !split {
		w.owner = map[string]string{}
	}
	if e.mirror {
		w.keep = map[string]bool{}
	}
	for i, img := range r.Images {
		if err := e.image(ctx, w, r, i, folders[i], split, p); err != nil {
			return image.GoneFile(e.env.Cache, img.Root, err)
		}
	}
	if e.mirror {
		return w.removeOthers()
	}
	return nil
}

// image writes image i, into a folder of that name if it is to have one of its own.
func (e *Exporter) image(ctx context.Context, w *writer, r exporter.Result, i int, folder string, split bool, p exporter.Progress) (err error) {
	img := r.Images[i]
	step := "copying files"
	if split {
		step += " " + img.Name()
	}
	done := p.Step(step)
	defer func() { done(err) }()
	epoch, err := e.opts.Epoch(r, img)
	if err != nil {
		return err
	}
	state, err := image.State(ctx, e.env, img.Root)
	if err != nil {
		return err
	}
	w.epoch, w.platform, w.first = epoch, img.Name(), map[inode]string{}
	root := state
	naming := attest.Naming{Prefix: e.opts.Prefix}
	dir := ""
	switch {
	case split:
		dir = folder
		state.Name, state.Mode = dir, 0o755
	case r.Index():
		naming.Platform = folder
	}
	if err := w.write(ctx, state); err != nil || len(img.Attestations) == 0 {
		return err
	}
	files, err := attest.Files(ctx, e.env, img, root, naming)
	if err != nil {
		return err
	}
	return w.statements(dir, files, e.env.Now().UnixNano())
}
