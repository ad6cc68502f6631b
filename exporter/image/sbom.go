package image

import (
	"context"
	"encoding/json"
	"path"
	"strings"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter"
)

// creator is what a completed document names beside its scanner.
const creator = "Tool: kiln"

// nameLayers says in an SPDX document which layer each of its files came with,
// where it has no comment yet: a scanner sees the image's files, not its layers.
// A document that cannot be read is left as it is. What this program does not know
// of the format stays.
func (a *assembly) nameLayers(ctx context.Context, img exporter.Image, layers []Layer, data []byte) ([]byte, error) {
	var doc, info map[string]json.RawMessage
	var version string
	var files []map[string]json.RawMessage
	if json.Unmarshal(data, &doc) != nil || json.Unmarshal(doc["spdxVersion"], &version) != nil || !strings.HasPrefix(version, "SPDX-2.") {
		return data, nil
	}
	if len(doc["files"]) > 0 && json.Unmarshal(doc["files"], &files) != nil ||
		len(doc["creationInfo"]) > 0 && json.Unmarshal(doc["creationInfo"], &info) != nil {
		return data, nil
	}
	if len(files) > 0 {
		of, err := a.layersOf(ctx, img, layers)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			var name, comment string
			if json.Unmarshal(f["fileName"], &name) != nil || json.Unmarshal(f["comment"], &comment) == nil && comment != "" {
				continue
			}
			if l, ok := of[path.Join("/", name)]; ok {
				if f["comment"], err = json.Marshal("layerID: " + l); err != nil {
					return nil, err
				}
			}
		}
		if doc["files"], err = json.Marshal(files); err != nil {
			return nil, err
		}
	}
	if info == nil {
		info = map[string]json.RawMessage{}
	}
	var creators []string
	if len(info["creators"]) > 0 && json.Unmarshal(info["creators"], &creators) != nil {
		return data, nil
	}
	var err error
	if info["creators"], err = json.Marshal(append(creators, creator)); err != nil {
		return nil, err
	}
	if doc["creationInfo"], err = json.Marshal(info); err != nil {
		return nil, err
	}
	return json.Marshal(doc)
}

// layersOf gives the blob's digest of the topmost layer that has a file.
func (a *assembly) layersOf(ctx context.Context, img exporter.Image, layers []Layer) (map[string]string, error) {
	if a.env.Source != nil {
		if err := a.env.Source.Unpack(ctx, img.Root); err != nil {
			return nil, err
		}
	}
	of := map[string]string{}
	for _, l := range layers { // bottom first, so that the topmost stays
		known, err := a.env.Cache.Layer(l.ID)
		if err != nil {
			return nil, err
		}
		err = tree.Walk(a.env.Cache, known.Root, func(name string, e tree.Entry) error {
			if e.Kind != tree.Whiteout && name != "" {
				of["/"+name] = l.Desc.Digest.String()
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return of, nil
}
