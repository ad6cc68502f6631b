package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/kiln-build/kiln/exporter/image"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxIndex bounds an index.json that is read.
const maxIndex = 16 << 20

// writeFolder adds the image to the layout in the target's folder: blobs first,
// so that its index.json never names one that is missing.
func (e *Exporter) writeFolder(ctx context.Context, img *image.Image, names []string) error {
	folder, err := e.env.Target.Folder(ctx)
	if err != nil {
		return err
	}
	if err := writeLayout(ctx, folder.Path(), img, names); err != nil {
		return errors.Join(err, folder.Abort())
	}
	return folder.Commit()
}

func writeLayout(ctx context.Context, path string, img *image.Image, names []string) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return fmt.Errorf("opening the output folder: %w", err)
	}
	defer root.Close()
	if err := root.MkdirAll("blobs/sha256", 0o755); err != nil {
		return fmt.Errorf("making the layout: %w", err)
	}
	for _, l := range img.Layers() {
		err := addBlob(root, digest.Digest(l.Desc.Digest.String()), l.Desc.Size, func(f *os.File) error { return l.Copy(ctx, f) })
		if err != nil {
			return err
		}
	}
	for _, d := range img.Documents() {
		err := addBlob(root, d.Desc.Digest, d.Desc.Size, func(f *os.File) error {
			_, err := f.Write(d.Data)
			return err
		})
		if err != nil {
			return err
		}
	}
	layout, err := layoutFile()
	if err != nil {
		return fmt.Errorf("writing oci-layout: %w", err)
	}
	if err := replace(root, "oci-layout", 0o644, func(f *os.File) error { _, err := f.Write(layout); return err }); err != nil {
		return err
	}
	return addToIndex(root, img.Root.Desc, names)
}

// addBlob writes a blob unless the layout has it.
func addBlob(root *os.Root, d digest.Digest, size int64, write func(*os.File) error) error {
	path := blobPath(d)
	if st, err := root.Stat(path); err == nil && st.Mode().IsRegular() && st.Size() == size {
		return nil
	}
	return replace(root, path, 0o444, write)
}

// replace writes a file beside its place and gives it its name when it is whole.
func replace(root *os.Root, path string, mode fs.FileMode, write func(*os.File) error) error {
	temp := path + ".part"
	if err := root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("writing the layout: %w", err)
	}
	f, err := root.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return fmt.Errorf("writing the layout: %w", err)
	}
	err = errors.Join(write(f), f.Close())
	if err == nil {
		err = root.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s of the layout: %w", path, err), root.Remove(temp))
	}
	return nil
}

// addToIndex puts the image into index.json, in the place of what has its names.
func addToIndex(root *os.Root, desc ocispecs.Descriptor, names []string) error {
	var idx ocispecs.Index
	f, err := root.Open("index.json")
	switch {
	case err == nil:
		err = json.NewDecoder(io.LimitReader(f, maxIndex)).Decode(&idx)
		f.Close()
		if err != nil {
			return fmt.Errorf("reading the layout's index.json: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("reading the layout's index.json: %w", err)
	}
	added := named(desc, names)
	if len(names) == 0 {
		added[0].Annotations = mapWith(desc.Annotations, ocispecs.AnnotationRefName, "latest")
	}
	kept := slices.DeleteFunc(idx.Manifests, func(m ocispecs.Descriptor) bool {
		return slices.ContainsFunc(added, func(a ocispecs.Descriptor) bool {
			return a.Annotations[ocispecs.AnnotationRefName] == m.Annotations[ocispecs.AnnotationRefName] &&
				a.Annotations[imageNameKey] == m.Annotations[imageNameKey]
		})
	})
	data, err := indexFile(append(kept, added...))
	if err != nil {
		return fmt.Errorf("writing index.json: %w", err)
	}
	return replace(root, "index.json", 0o644, func(f *os.File) error { _, err := f.Write(data); return err })
}

func mapWith(m map[string]string, k, v string) map[string]string {
	out := map[string]string{k: v}
	for k, v := range m {
		if _, ok := out[k]; !ok {
			out[k] = v
		}
	}
	return out
}
