// Package image assembles images: it gives every layer of a chain a blob,
// completes the config, and writes the manifest, and the index where there are
// several platforms.
//
// An image that was assembled is held in memory but for its layers, which are
// read from where they are when somebody writes them somewhere. Everything is
// made in the same bytes again when it is made of the same layers and configs.
package image

import (
	"fmt"
	"strconv"
	"time"

	"github.com/kiln-build/kiln/exporter/layer"
)

// Options are the exporter attributes that shape an image. The zero value is
// gzip layers and docker media types; ParseOptions gives BuildKit's defaults.
type Options struct {
	// Name is the attribute "name" as given: several names have commas between them.
	Name string
	// Method is how layers are compressed that have no blob yet.
	Method layer.Method
	// Force compresses pulled layers too, where their compression is another.
	Force bool
	// OCI has OCI media types rather than docker's.
	OCI bool
	// Annotations of manifests and indexes.
	Annotations Annotations
	// Epoch is SOURCE_DATE_EPOCH where EpochSet is; a nil Epoch that is set means
	// that what the frontend says of it does not count.
	Epoch    *time.Time
	EpochSet bool
	// RewriteTimes lets no file of a layer be later than the Epoch, where there is one.
	// Without it that bounds the times in the config alone, as in BuildKit: files whose
	// times stand elsewhere too, in compiled Python for one, stay as they were made.
	RewriteTimes bool
	// Artifact has the manifests of attestations as OCI artifacts that name their
	// image as their subject, rather than as images of the platform "unknown".
	Artifact bool
	// Inline has attestations that are for indexes only in an index of their own.
	Inline bool
	// Rest are the attributes that are not of this package.
	Rest map[string]string
}

// The attributes, as BuildKit names them.
const (
	attrName             = "name"
	attrCompression      = "compression"
	attrLevel            = "compression-level"
	attrForce            = "force-compression"
	attrOCI              = "oci-mediatypes"
	attrEpoch            = "source-date-epoch"
	attrRewriteTimestamp = "rewrite-timestamp"
	attrArtifact         = "oci-artifact"
	attrInline           = "attestation-inline"

	// metadataEpoch is where a frontend says SOURCE_DATE_EPOCH.
	metadataEpoch  = "source.date.epoch"
	metadataConfig = "containerimage.config"
)

// ignoredBools are attributes that are checked and change nothing: that of foreign
// layers.
var ignoredBools = map[string]bool{"prefer-nondist-layers": true}

// ParseOptions reads exporter attributes.
func ParseOptions(attrs map[string]string) (Options, error) {
	o := Options{OCI: true, Artifact: true, Annotations: Annotations{}, Rest: map[string]string{}}
	for k, v := range attrs {
		isAnnotation, err := o.Annotations.parse(k, v)
		if err == nil && !isAnnotation {
			err = o.set(k, v)
		}
		if err != nil {
			return Options{}, err
		}
	}
	if err := o.Method.Check(); err != nil {
		return Options{}, err
	}
	if _, asked := attrs[attrArtifact]; !o.OCI && o.Artifact {
		if asked {
			return Options{}, fmt.Errorf("exporter option %q conflicts with %q", attrArtifact+"=true", attrOCI+"=false")
		}
		o.Artifact = false
	}
	if !o.OCI && len(o.Annotations) > 0 && o.Annotations.needOCI() {
		return Options{}, fmt.Errorf("annotations of indexes and descriptors need OCI media types: leave out %s=false", attrOCI)
	}
	return o, nil
}

func (o *Options) set(k, v string) (err error) {
	switch k {
	case attrName:
		o.Name = v
	case attrCompression:
		o.Method.Compression, err = parseCompression(v)
	case attrLevel:
		o.Method.Leveled = true
		if o.Method.Level, err = strconv.Atoi(v); err != nil {
			return fmt.Errorf("exporter option %s=%s: not a number", k, v)
		}
	case attrForce:
		o.Force, err = ParseBool(k, v, true)
	case attrOCI:
		o.OCI, err = ParseBool(k, v, false)
	case attrArtifact:
		o.Artifact, err = ParseBool(k, v, true)
	case attrInline:
		o.Inline, err = ParseBool(k, v, true)
	case attrRewriteTimestamp:
		o.RewriteTimes, err = ParseBool(k, v, false)
	case attrEpoch:
		o.EpochSet = true
		o.Epoch, err = parseEpoch(v)
	default:
		if ignoredBools[k] {
			_, err = ParseBool(k, v, false)
		} else {
			o.Rest[k] = v
		}
	}
	return err
}

// ParseBool reads a boolean attribute; where bare is set, no value means true.
func ParseBool(key, value string, bare bool) (bool, error) {
	if bare && value == "" {
		return true, nil
	}
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("exporter option %s=%s: want true or false", key, value)
	}
	return b, nil
}

func parseCompression(v string) (layer.Compression, error) {
	switch v {
	case "gzip":
		return layer.Gzip, nil
	case "zstd":
		return layer.Zstd, nil
	case "uncompressed":
		return layer.Uncompressed, nil
	case "estargz":
		return 0, fmt.Errorf("exporter option %s=estargz: not supported; use gzip, zstd or uncompressed", attrCompression)
	}
	return 0, fmt.Errorf("exporter option %s=%s: want gzip, zstd or uncompressed", attrCompression, v)
}

func parseEpoch(v string) (*time.Time, error) {
	if v == "" {
		return nil, nil
	}
	s, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("SOURCE_DATE_EPOCH %q: want a number of seconds since 1970", v)
	}
	t := time.Unix(s, 0).UTC()
	return &t, nil
}

// Config gives the config that the attributes have for an image, which goes before
// the frontend's: "containerimage.config", followed by a slash and the platform
// where it is for that one alone. Nil is the frontend's.
func (o *Options) Config(platform string) []byte {
	for _, key := range []string{metadataConfig + "/" + platform, metadataConfig} {
		if v, ok := o.Rest[key]; ok {
			return []byte(v)
		}
	}
	return nil
}

// epoch gives the time that bounds those of an image; nil is no such bound.
func (o *Options) epoch(metadata map[string][]byte, platform string) (*time.Time, error) {
	return epoch(o.Epoch, o.EpochSet, metadata, platform)
}

// epoch gives SOURCE_DATE_EPOCH: what the attribute says where it is set, else
// what the frontend says for the platform, or for all.
func epoch(attr *time.Time, set bool, metadata map[string][]byte, platform string) (*time.Time, error) {
	if set {
		return attr, nil
	}
	if v, ok := metadata[metadataEpoch+"/"+platform]; ok {
		return parseEpoch(string(v))
	}
	return parseEpoch(string(metadata[metadataEpoch]))
}

// clamp gives the options of layers whose image has that epoch.
func (o *Options) clamp(epoch *time.Time) layer.Options {
	if epoch == nil || !o.RewriteTimes {
		return layer.Options{}
	}
	return layer.Options{Clamp: epoch.Unix(), Clamped: true}
}
