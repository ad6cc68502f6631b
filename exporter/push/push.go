// Package push writes images to registries, and notes them in the state folder:
// the exporters "image" and "registry".
package push

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync/atomic"

	"github.com/distribution/reference"
	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/image"
	"github.com/kiln-build/kiln/registry"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// uploadsAtOnce is how many blobs are sent at the same time. Registries answer
// slowly rather than send slowly; many more would only make them answer slower.
const uploadsAtOnce = 6

// imageBucket maps the name of an image that was exported to its digest.
const imageBucket = "exporter.images"

// Exporter writes images.
type Exporter struct {
	env      exporter.Env
	opts     image.Options
	push     bool
	byDigest bool
	insecure bool
}

var _ exporter.Exporter = (*Exporter)(nil)

// ignored are BuildKit's attributes about containerd's image store, which kiln
// has nothing like. They are checked and change nothing.
var ignored = []string{"unpack", "store", "name-canonical", "danging-name-empty-only"}

// New makes the exporter "image", which pushes where its attributes say so, or,
// where push is set, "registry", which does unless they say no.
func New(env exporter.Env, push bool, attrs map[string]string) (*Exporter, error) {
	o, err := image.ParseOptions(attrs)
	if err != nil {
		return nil, err
	}
	if _, given := attrs["attestation-inline"]; !given {
		o.Inline = true // registries take indexes
	}
	e := &Exporter{env: env, opts: o, push: push}
	for key, to := range map[string]*bool{"push": &e.push, "push-by-digest": &e.byDigest, "registry.insecure": &e.insecure} {
		if v, ok := o.Rest[key]; ok {
			if *to, err = image.ParseBool(key, v, true); err != nil {
				return nil, err
			}
		}
	}
	for _, key := range ignored {
		if v, ok := o.Rest[key]; ok {
			if _, err := image.ParseBool(key, v, true); err != nil {
				return nil, err
			}
		}
	}
	return e, nil
}

// Export makes the image and pushes it under each of its names. Layers are sent
// while later ones are still being made.
func (e *Exporter) Export(ctx context.Context, r exporter.Result, p exporter.Progress) (map[string]string, error) {
	names, err := e.names(r)
	if err != nil {
		return nil, err
	}
	var img *image.Image
	if e.push {
		img, err = e.assembleAndPush(ctx, r, p, names)
	} else {
		img, err = image.Assemble(ctx, e.env, e.opts, r, p, nil)
	}
	if err != nil {
		return nil, err
	}
	resp := img.Response()
	if len(names) > 0 {
		resp["image.name"] = strings.Join(names, ",")
	}
	return resp, e.note(ctx, img, names)
}

// names gives what the image is to be called, as it was given.
func (e *Exporter) names(r exporter.Result) ([]string, error) {
	full, err := e.opts.Names(r.Metadata)
	if err != nil {
		return nil, err
	}
	if e.push && len(full) == 0 {
		return nil, errors.New("pushing needs a name: give one with name=")
	}
	if !e.byDigest {
		return full, nil
	}
	for i, n := range full {
		// Names adds the tag "latest"; one that was given is a contradiction.
		repo, tagged := strings.CutSuffix(n, ":latest")
		if !tagged || strings.Contains(e.opts.Name, ":latest") {
			return nil, fmt.Errorf("pushing %s by digest: the name must have no tag", n)
		}
		full[i] = repo
	}
	return full, nil
}

// note stores the image's documents, and under which names it was exported.
func (e *Exporter) note(ctx context.Context, img *image.Image, names []string) error {
	for _, d := range img.Documents() {
		digest, err := blob.Parse(d.Desc.Digest.String())
		if err == nil {
			err = e.env.Cache.Blobs().Put(ctx, digest, d.Desc.Size, bytes.NewReader(d.Data))
		}
		if err != nil {
			return fmt.Errorf("storing the image: %w", err)
		}
	}
	bucket := e.env.Cache.Bucket(imageBucket)
	for _, n := range names {
		if err := bucket.Put([]byte(n), []byte(img.Root.Desc.Digest)); err != nil {
			return fmt.Errorf("noting the image %s: %w", n, err)
		}
	}
	return nil
}

// client gives the client to push with.
func (e *Exporter) client(names []string) (*registry.Client, error) {
	c := e.env.Registry
	if c == nil {
		c = new(registry.Client)
	}
	if !e.insecure {
		return c, nil
	}
	hosts := maps.Clone(c.Hosts)
	if hosts == nil {
		hosts = map[string]registry.HostConfig{}
	}
	yes := true
	for _, n := range names {
		ref, err := registry.ParseReference(n)
		if err != nil {
			return nil, err
		}
		h := hosts[ref.Host]
		h.HTTP, h.Insecure = &yes, &yes
		hosts[ref.Host] = h
	}
	return &registry.Client{Hosts: hosts, Limits: c.Limits, UserAgent: c.UserAgent, Uploads: c.Uploads}, nil
}

// pusher is one export on its way to registries.
type pusher struct {
	env      exporter.Env
	client   *registry.Client
	names    []string
	repos    []string // of names, each once, as "host/name"
	byDigest bool
}

func (e *Exporter) assembleAndPush(ctx context.Context, r exporter.Result, p exporter.Progress, names []string) (*image.Image, error) {
	client, err := e.client(names)
	if err != nil {
		return nil, err
	}
	ps := &pusher{env: e.env, client: client, names: names, byDigest: e.byDigest}
	seen := map[string]bool{}
	for _, n := range names {
		ref, err := registry.ParseReference(n)
		if err != nil {
			return nil, err
		}
		if repo := ref.Repository(); !seen[repo] {
			seen[repo] = true
			ps.repos = append(ps.repos, repo)
		}
	}
	done := p.Step("pushing layers")
	img, err := ps.layers(ctx, func(ctx context.Context, ready func(image.Layer) error) (*image.Image, error) {
		return image.Assemble(ctx, e.env, e.opts, r, p, ready)
	})
	done(err)
	if err != nil {
		return nil, err
	}
	return img, ps.manifests(ctx, img, p)
}

// layers sends each layer that assemble gives, and then the configs.
func (ps *pusher) layers(ctx context.Context, assemble func(context.Context, func(image.Layer) error) (*image.Image, error)) (*image.Image, error) {
	uploads, uctx := errgroup.WithContext(ctx)
	uploads.SetLimit(uploadsAtOnce)
	var fresh atomic.Bool // a config with a fresh layer is as new as that
	img, err := assemble(uctx, func(l image.Layer) error {
		if l.Fresh {
			fresh.Store(true)
		}
		for _, repo := range ps.repos {
			uploads.Go(func() error { return ps.layer(uctx, repo, l) })
		}
		return nil
	})
	if err == nil {
		for _, d := range configs(img) {
			for _, repo := range ps.repos {
				uploads.Go(func() error { return ps.document(uctx, repo, d, fresh.Load()) })
			}
		}
	}
	// What an upload failed with tells more than that the assembly was cancelled.
	if uerr := uploads.Wait(); uerr != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = uerr
	}
	return img, err
}

// configs gives the documents that are blobs, each once.
func configs(img *image.Image) []image.Document {
	var all, out []image.Document
	for _, m := range img.Manifests {
		all = append(all, m.Config)
	}
	for _, a := range img.Attestations {
		all = append(append(all, a.Statements...), a.Config)
	}
	seen := map[digest.Digest]bool{}
	for _, d := range all {
		if !seen[d.Desc.Digest] {
			seen[d.Desc.Digest] = true
			out = append(out, d)
		}
	}
	return out
}

// layer sends a layer to a repository, and notes that it is there.
func (ps *pusher) layer(ctx context.Context, repo string, l image.Layer) error {
	if err := ps.send(ctx, repo, l.Desc, l.Fresh, l.Origins, l.Open); err != nil {
		return err
	}
	known, err := ps.env.Cache.Layer(l.ID)
	if err != nil {
		return err
	}
	for _, b := range known.Blobs {
		if b.Digest == l.Desc.Digest {
			return ps.env.Cache.PutLayer(cache.Layer{ID: l.ID, Origins: []string{repo}})
		}
	}
	return nil
}

func (ps *pusher) document(ctx context.Context, repo string, d image.Document, fresh bool) error {
	desc, err := descriptor(d.Desc)
	if err != nil {
		return err
	}
	open := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(d.Data)), nil }
	return ps.send(ctx, repo, desc, fresh, nil, open)
}

// send sends a blob to a repository. A fresh one is hardly there, nor anywhere else.
func (ps *pusher) send(ctx context.Context, repo string, d blob.Descriptor, fresh bool, origins []string, open registry.Content) (err error) {
	if fresh {
		_, err = ps.client.PushNew(ctx, ps.env.Credentials, repo, d, open)
	} else {
		_, err = ps.client.Push(ctx, ps.env.Credentials, repo, d, origins, open)
	}
	return err
}

// manifests sends the manifests, and what names them after them.
func (ps *pusher) manifests(ctx context.Context, img *image.Image, p exporter.Progress) error {
	for _, name := range ps.names {
		ref, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return fmt.Errorf("image name %q: %w", name, err)
		}
		repo := reference.TrimNamed(ref).String()
		if img.Index {
			for _, m := range img.Manifests {
				if err := ps.manifest(ctx, repo+"@"+m.Desc.Digest.String(), m.Document, p); err != nil {
					return err
				}
			}
			for _, a := range img.Attestations {
				if err := ps.manifest(ctx, repo+"@"+a.Desc.Digest.String(), a.Document, p); err != nil {
					return err
				}
			}
		}
		to := name
		if ps.byDigest {
			to = repo + "@" + img.Root.Desc.Digest.String()
		}
		if err := ps.manifest(ctx, to, img.Root, p); err != nil {
			return err
		}
	}
	return nil
}

func (ps *pusher) manifest(ctx context.Context, ref string, d image.Document, p exporter.Progress) error {
	shown := ref
	if !strings.Contains(ref, "@") {
		shown += "@" + d.Desc.Digest.String()
	}
	done := p.Step("pushing manifest for " + shown)
	desc, err := descriptor(d.Desc)
	if err == nil {
		err = ps.client.PushManifest(ctx, ps.env.Credentials, ref, desc, d.Data)
	}
	done(err)
	return err
}

func descriptor(d ocispecs.Descriptor) (blob.Descriptor, error) {
	digest, err := blob.Parse(d.Digest.String())
	return blob.Descriptor{MediaType: d.MediaType, Digest: digest, Size: d.Size}, err
}
