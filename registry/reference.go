package registry

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"

	"github.com/kiln-build/kiln/cache/blob"
)

// Reference is the name of an image, every part of it spelled out.
type Reference struct {
	Host string // "docker.io", "127.0.0.1:5000"
	Name string // "library/debian"
	// Tag is "latest" where neither a tag nor a digest was given, and may stand
	// beside a digest, which then decides.
	Tag    string
	Digest blob.Digest // zero where none was given
}

// ParseReference reads a reference as docker does: "debian" is
// "docker.io/library/debian:latest".
func ParseReference(s string) (Reference, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, fmt.Errorf("%q is not an image reference: %w", s, err)
	}
	r := Reference{Host: reference.Domain(named), Name: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		r.Tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		if r.Digest, err = blob.Parse(d.Digest().String()); err != nil {
			return Reference{}, fmt.Errorf("%q: kiln reads sha256 digests only: %w", s, err)
		}
		if r.Digest.IsZero() {
			// Nothing has this digest, and here it would stand for none.
			return Reference{}, fmt.Errorf("%s: %w", s, ErrNotFound)
		}
	}
	if r.Tag == "" && r.Digest.IsZero() {
		r.Tag = "latest"
	}
	return r, nil
}

// Repository is the reference without tag and digest: "host/name".
func (r Reference) Repository() string { return r.Host + "/" + r.Name }

// String spells the reference out.
func (r Reference) String() string {
	var b strings.Builder
	b.WriteString(r.Repository())
	if r.Tag != "" {
		b.WriteString(":" + r.Tag)
	}
	if !r.Digest.IsZero() {
		b.WriteString("@" + r.Digest.String())
	}
	return b.String()
}

// object is what the manifests API calls the thing: its digest, or else its tag.
func (r Reference) object() string {
	if !r.Digest.IsZero() {
		return r.Digest.String()
	}
	return r.Tag
}
