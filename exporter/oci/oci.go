// Package oci writes images as OCI layouts: as a tarball, with what "docker load"
// reads beside it for the type "docker", or as a folder.
package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/image"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// imageNameKey is where containerd looks for an image's name.
const imageNameKey = "io.containerd.image.name"

// Exporter writes layouts.
type Exporter struct {
	env    exporter.Env
	opts   image.Options
	docker bool
	folder bool
}

var _ exporter.Exporter = (*Exporter)(nil)

// New makes the exporter "oci", or, where docker is set, "docker".
func New(env exporter.Env, docker bool, attrs map[string]string) (*Exporter, error) {
	o, err := image.ParseOptions(attrs)
	if err != nil {
		return nil, err
	}
	e := &Exporter{env: env, opts: o, docker: docker}
	if v, ok := o.Rest["tar"]; ok {
		tar, err := image.ParseBool("tar", v, true)
		if err != nil {
			return nil, err
		}
		e.folder = !tar
	}
	return e, nil
}

// Export writes r.
func (e *Exporter) Export(ctx context.Context, r exporter.Result, p exporter.Progress) (map[string]string, error) {
	if e.docker && r.Index() {
		return nil, errors.New("type=docker holds an image for one platform only; use type=oci")
	}
	if e.docker && e.opts.Index(r) {
		return nil, errors.New("type=docker has no place for attestations; leave them out, or use type=oci")
	}
	if e.env.Target == nil {
		return nil, errors.New("the output needs a destination: name one with dest=")
	}
	names, err := e.opts.Names(r.Metadata)
	if err != nil {
		return nil, err
	}
	placed, err := e.place(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := e.write(ctx, r, p, names, placed)
	if placed != nil {
		err = placed.end(err)
	}
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// write makes the image and writes it, to a file that is open where placed is not nil.
func (e *Exporter) write(ctx context.Context, r exporter.Result, p exporter.Progress, names []string, placed *placed) (map[string]string, error) {
	var img *image.Image
	var err error
	if placed == nil {
		img, err = image.Assemble(ctx, e.env, e.opts, r, p, nil)
	} else {
		img, err = image.AssembleAt(ctx, e.env, e.opts, r, p, func(forecast *image.Image, first int) func() io.Writer {
			return placed.reserve(e, forecast, names, first)
		})
	}
	if err != nil {
		return nil, err
	}
	if err := setCreated(img); err != nil {
		return nil, err
	}
	resp := img.Response()
	if len(names) > 0 {
		resp["image.name"] = strings.Join(names, ",")
	}
	step := "sending tarball"
	if e.folder {
		step = "writing the layout"
	}
	done := p.Step(step)
	if err = image.Fetch(ctx, e.env, img.Layers()); err == nil {
		switch {
		case e.folder:
			err = e.writeFolder(ctx, img, names)
		case placed != nil:
			err = e.fill(ctx, placed, img, names)
		default:
			err = e.writeTarball(ctx, img, names, resp)
		}
	}
	done(err)
	return resp, err
}

// setCreated says in the root descriptor when the image was made, unless an
// annotation does. It is the time that the config has: that of the export would
// make two tarballs of one image differ.
func setCreated(img *image.Image) error {
	root := &img.Root.Desc
	if _, ok := root.Annotations[ocispecs.AnnotationCreated]; ok {
		return nil
	}
	var config struct{ Created *time.Time }
	if err := json.Unmarshal(img.Manifests[0].Config.Data, &config); err != nil {
		return fmt.Errorf("reading the image config: %w", err)
	}
	if config.Created == nil {
		return nil
	}
	root.Annotations = maps.Clone(root.Annotations)
	if root.Annotations == nil {
		root.Annotations = map[string]string{}
	}
	root.Annotations[ocispecs.AnnotationCreated] = config.Created.UTC().Format(time.RFC3339)
	return nil
}

// named gives the root descriptor as index.json has it: once for each name.
func named(root ocispecs.Descriptor, names []string) []ocispecs.Descriptor {
	if len(names) == 0 {
		return []ocispecs.Descriptor{root}
	}
	out := make([]ocispecs.Descriptor, len(names))
	for i, n := range names {
		out[i] = root
		out[i].Annotations = maps.Clone(root.Annotations)
		if out[i].Annotations == nil {
			out[i].Annotations = map[string]string{}
		}
		out[i].Annotations[imageNameKey] = n
		out[i].Annotations[ocispecs.AnnotationRefName] = refName(n)
	}
	return out
}

// refName gives the tag of a full name, or the name where it has none.
func refName(name string) string {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	if t, ok := ref.(reference.Tagged); ok {
		return t.Tag()
	}
	return name
}

// layoutFile is what a file oci-layout holds.
func layoutFile() ([]byte, error) {
	return json.Marshal(ocispecs.ImageLayout{Version: ocispecs.ImageLayoutVersion})
}

// indexFile gives an index.json.
func indexFile(manifests []ocispecs.Descriptor) ([]byte, error) {
	return json.Marshal(ocispecs.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispecs.MediaTypeImageIndex,
		Manifests: manifests,
	})
}

// dockerManifest gives the manifest.json that "docker load" reads.
func dockerManifest(m image.Manifest, names []string) ([]byte, error) {
	entry := struct {
		Config   string
		RepoTags []string
		Layers   []string
	}{Config: blobPath(m.Config.Desc.Digest), Layers: []string{}}
	for _, l := range m.Layers {
		entry.Layers = append(entry.Layers, blobPath(digest.Digest(l.Desc.Digest.String())))
	}
	for _, n := range names {
		ref, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			return nil, fmt.Errorf("image name %q: %w", n, err)
		}
		entry.RepoTags = append(entry.RepoTags, reference.FamiliarString(ref))
	}
	return json.Marshal([]any{entry})
}

// blobPath gives where a blob is in a layout.
func blobPath(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }
