package image

import (
	"fmt"
	"maps"
	"regexp"

	"github.com/containerd/platforms"
	"github.com/kiln-build/kiln/exporter"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// place is what an annotation is put on.
type place string

const (
	onManifest           place = "manifest"
	onManifestDescriptor place = "manifest-descriptor"
	onIndex              place = "index"
	onIndexDescriptor    place = "index-descriptor"
)

// target is a place, of one platform's image or (platform "") of every one's.
type target struct {
	place    place
	platform string
}

// Annotations are those that exporter attributes and frontends ask for.
type Annotations map[target]map[string]string

// annotationKey is "annotation.KEY", "annotation-PLACE.KEY" or
// "annotation-PLACE[PLATFORM].KEY".
var annotationKey = regexp.MustCompile(`^annotation(?:-([a-z-]+))?(?:\[([A-Za-z0-9_/-]+)\])?\.(\S+)$`)

// parse adds the annotation that an attribute is; ok is false where it is none.
func (a Annotations) parse(attr, value string) (ok bool, err error) {
	m := annotationKey.FindStringSubmatch(attr)
	if m == nil {
		return false, nil
	}
	t := target{place: place(m[1])}
	switch t.place {
	case "":
		t.place = onManifest
	case onManifest, onManifestDescriptor, onIndex, onIndexDescriptor:
	default:
		return true, fmt.Errorf("annotation %q: unknown place %q; want %s, %s, %s or %s", attr, m[1],
			onManifest, onManifestDescriptor, onIndex, onIndexDescriptor)
	}
	if m[2] != "" {
		p, err := platforms.Parse(m[2])
		if err != nil {
			return true, fmt.Errorf("annotation %q: %w", attr, err)
		}
		t.platform = platforms.FormatAll(p)
	}
	if a[t] == nil {
		a[t] = map[string]string{}
	}
	a[t][m[3]] = value
	return true, nil
}

// needOCI reports whether some are on what docker's formats have no place for.
func (a Annotations) needOCI() bool {
	for t := range a {
		if t.place != onManifest {
			return true
		}
	}
	return false
}

// merge gives a with the annotations that are in metadata; those of metadata win.
func (a Annotations) merge(metadata map[string][]byte) (Annotations, error) {
	out := Annotations{}
	for t, m := range a {
		out[t] = maps.Clone(m)
	}
	for k, v := range metadata {
		if _, err := out.parse(k, string(v)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// check finds what r, which is written as an index or not, has no place for.
func (a Annotations) check(r exporter.Result, index, oci bool) error {
	known := map[string]bool{"": true}
	for _, img := range r.Images {
		known[platforms.FormatAll(img.Platform)] = true
	}
	for t := range a {
		switch {
		case !known[t.platform]:
			return fmt.Errorf("annotation for platform %s: the result has no image for it", t.platform)
		case !index && (t.place == onIndex || t.place == onIndexDescriptor):
			return fmt.Errorf("annotation on the %s: an image for one platform has none", t.place)
		case !oci && t.place != onManifest:
			return fmt.Errorf("annotation on the %s: needs OCI media types; leave out %s=false", t.place, attrOCI)
		}
	}
	return nil
}

// of gives the annotations of a place for a platform; nil is none.
func (a Annotations) of(where place, p *ocispecs.Platform) map[string]string {
	out := maps.Clone(a[target{where, ""}])
	if p == nil {
		return out
	}
	own := a[target{where, platforms.FormatAll(*p)}]
	if out == nil {
		return maps.Clone(own)
	}
	maps.Copy(out, own)
	return out
}
