package image

import (
	"fmt"
	"strings"
	"time"

	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/layer"
)

// FileOptions are the attributes of exporters that write the files of images, and
// no images.
type FileOptions struct {
	// Split says that each image has a folder of its own; nil is where there are several.
	Split *bool
	// Prefix stands before the names of statements.
	Prefix string

	epoch    *time.Time // as in Options
	epochSet bool
}

// ParseFileOptions reads them.
func ParseFileOptions(attrs map[string]string) (o FileOptions, err error) {
	o.Prefix = attrs["attestation-prefix"]
	if v, ok := attrs[attrEpoch]; ok {
		o.epochSet = true
		if o.epoch, err = parseEpoch(v); err != nil {
			return o, err
		}
	}
	if v, ok := attrs["platform-split"]; ok {
		split, err := ParseBool("platform-split", v, false)
		if err != nil {
			return o, err
		}
		o.Split = &split
	}
	return o, nil
}

// Epoch gives the time that all files of an image have; nil is that each has its own.
func (o FileOptions) Epoch(r exporter.Result, img exporter.Image) (*time.Time, error) {
	return epoch(o.epoch, o.epochSet, r.Metadata, img.Name())
}

// SameTime gives the options that let everything have one time; nil is its own.
func SameTime(epoch *time.Time) layer.Options {
	if epoch == nil {
		return layer.Options{}
	}
	return layer.Options{Clamp: epoch.Unix(), Clamped: true, Same: true}
}

// Folders gives the name of the folder that each image's files go into where there
// are several: what the frontend calls its platform, made into one name. Two that
// come to one name would be mixed, which is an error.
func Folders(r exporter.Result) ([]string, error) {
	var folders []string
	named := map[string]string{}
	for _, img := range r.Images {
		id := img.Name()
		name := folder(id)
		if other, ok := named[name]; ok && other != id {
			return nil, fmt.Errorf("the platforms %q and %q would both be written to the folder %q: give one of them another name", other, id, name)
		}
		named[name] = id
		folders = append(folders, name)
	}
	return folders, nil
}

func folder(id string) string {
	name := strings.NewReplacer("/", "_", `\`, "_", ":", "_").Replace(id)
	if name == "." || name == ".." {
		return strings.Repeat("_", len(name))
	}
	return name
}
