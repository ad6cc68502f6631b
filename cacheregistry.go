package kiln

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote"
	"github.com/kiln-build/kiln/registry"
)

// registryStore is a cache in a registry.
type registryStore struct {
	client      *registry.Client
	credentials registry.Credentials
	ref         registry.Reference
}

var _ remote.Target = (*registryStore)(nil)

// registryStore gives the cache that ref= stands for.
func (b *build) registryStore(a attrs) (*registryStore, error) {
	ref := a.take("ref")
	if ref == "" {
		return nil, errors.New("ref=REGISTRY/NAME:TAG is missing")
	}
	insecure, err := a.bool("registry.insecure", false)
	if err != nil {
		return nil, err
	}
	patience, err := a.patience()
	if err != nil {
		return nil, err
	}
	r, err := registry.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	s := &registryStore{b.engine.cacheRegistry, b.credentials, r}
	if !insecure && patience == cachePatience {
		return s, nil
	}
	hosts, limits := maps.Clone(s.client.Hosts), cacheLimits
	if hosts == nil {
		hosts = map[string]registry.HostConfig{}
	}
	if insecure {
		h := hosts[r.Host]
		h.HTTP, h.Insecure = &insecure, &insecure
		hosts[r.Host] = h
	}
	limits.Header, limits.Stall = patience, patience
	limits.Dial = min(limits.Dial, patience)
	s.client = &registry.Client{Hosts: hosts, Limits: limits, Uploads: s.client.Uploads}
	return s, nil
}

// Manifest makes a registryStore a remote.Store.
func (s *registryStore) Manifest(ctx context.Context, d blob.Digest) ([]byte, error) {
	ref := s.ref
	if !d.IsZero() {
		ref = registry.Reference{Host: s.ref.Host, Name: s.ref.Name, Digest: d}
	}
	_, data, err := s.client.Manifest(ctx, s.credentials, ref.String())
	return data, missing(err)
}

// Blob makes a registryStore a remote.Store.
func (s *registryStore) Blob(ctx context.Context, d blob.Descriptor, offset int64) (io.ReadCloser, error) {
	r, err := s.client.FetchFrom(ctx, s.credentials, s.ref.Repository(), d, offset)
	return r, missing(err)
}

// missing says in the standard library's way that a registry does not have something.
func missing(err error) error {
	if errors.Is(err, registry.ErrNotFound) {
		return missingError{err}
	}
	return err
}

// missingError is an fs.ErrNotExist in the registry's words, which say it already.
type missingError struct{ error }

func (e missingError) Is(target error) bool { return target == fs.ErrNotExist }

func (e missingError) Unwrap() error { return e.error }

// Put makes a registryStore a remote.Target.
func (s *registryStore) Put(ctx context.Context, d blob.Descriptor, origins []string, open func(context.Context) (io.ReadCloser, error)) error {
	_, err := s.client.Push(ctx, s.credentials, s.ref.Repository(), d, origins, open)
	return err
}

// Commit makes a registryStore a remote.Target. Registries know no conditions: what
// is there is looked at right before it is written over.
func (s *registryStore) Commit(ctx context.Context, d blob.Descriptor, manifest []byte, old blob.Digest) (bool, error) {
	if remote.Changed(ctx, s, old) {
		return false, fmt.Errorf("%s: %w", s.ref, remote.ErrChanged)
	}
	err := s.client.PushManifest(ctx, s.credentials, s.ref.String(), d, manifest)
	if e, ok := errors.AsType[*registry.Error](err); ok && (e.Status == http.StatusBadRequest || e.Status == http.StatusNotFound) {
		err = fmt.Errorf("%w: %w", remote.ErrRefused, err) // of blobs that are gone some say the one, some the other
	}
	return false, err
}
