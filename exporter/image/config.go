package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// defaultPath is the PATH of an image that no frontend made a config for.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// DefaultConfig gives the config of a root file system alone.
func DefaultConfig(p ocispecs.Platform) ([]byte, error) {
	img := ocispecs.Image{Platform: p}
	img.RootFS.Type = "layers"
	img.Config.WorkingDir = "/"
	if p.OS != "windows" {
		img.Config.Env = []string{defaultPath}
	}
	return json.Marshal(img)
}

// withPlatform gives a config that says what it is for: one that does not is for the
// platform that the image was built for.
func withPlatform(config []byte, p ocispecs.Platform) ([]byte, error) {
	var said ocispecs.Platform
	if err := json.Unmarshal(config, &said); err != nil {
		return nil, fmt.Errorf("reading the image config: %w", err)
	}
	if said.OS != "" || said.Architecture != "" || bytes.Equal(bytes.TrimSpace(config), []byte("null")) {
		return config, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, fmt.Errorf("reading the image config: %w", err)
	}
	err := errors.Join(setField(fields, "os", p.OS), setField(fields, "architecture", p.Architecture))
	if p.Variant != "" {
		err = errors.Join(err, setField(fields, "variant", p.Variant))
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(fields)
}

// layerInfo is what the history needs to know of a layer.
type layerInfo struct {
	diffID  blob.Digest
	created time.Time // when it was made
	name    string    // what made it
}

// completeConfig puts into a frontend's config what only the exporter knows: the
// layers, a history that matches them, and when the image was made. Fields that
// it does not know stay as they are.
func completeConfig(config, base []byte, layers []layerInfo, epoch *time.Time) ([]byte, error) {
	var img ocispecs.Image
	if err := json.Unmarshal(config, &img); err != nil {
		return nil, fmt.Errorf("reading the image config: %w", err)
	}
	switch {
	case bytes.Equal(bytes.TrimSpace(config), []byte("null")):
		return nil, errors.New("invalid null image config for export")
	case (img.OS == "") != (img.Architecture == ""):
		return nil, errors.New("invalid image config: os and architecture must be specified together")
	case img.OS == "":
		return nil, errors.New("invalid image config: it names no os and no architecture")
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, fmt.Errorf("reading the image config: %w", err)
	}
	var baseImg ocispecs.Image
	if len(base) > 0 {
		if err := json.Unmarshal(base, &baseImg); err != nil {
			return nil, fmt.Errorf("reading the base image's config: %w", err)
		}
	}

	history := alignHistory(img.History, layers)
	clampHistory(history, baseImg.History, epoch)
	ids := make([]string, len(layers))
	for i, l := range layers {
		ids[i] = l.diffID.String()
	}
	if err := errors.Join(
		setField(fields, "rootfs", map[string]any{"type": "layers", "diff_ids": ids}),
		setField(fields, "history", history),
		setCreated(fields, img.Created, history, epoch),
	); err != nil {
		return nil, fmt.Errorf("writing the image config: %w", err)
	}
	return json.Marshal(fields)
}

func setField(fields map[string]json.RawMessage, key string, v any) error {
	b, err := json.Marshal(v)
	fields[key] = b
	return err
}

// setCreated says when the image was made: what the frontend says, no later than
// epoch, or else when the last step of its history ran.
func setCreated(fields map[string]json.RawMessage, created *time.Time, history []ocispecs.History, epoch *time.Time) error {
	if _, ok := fields["created"]; ok {
		if created != nil && epoch != nil && created.After(*epoch) {
			return setField(fields, "created", epoch)
		}
		return nil
	}
	for _, h := range history {
		if h.Created != nil {
			created = h.Created
		}
	}
	if created == nil {
		return nil
	}
	return setField(fields, "created", created)
}

// alignHistory gives a history whose entries that are not empty are as many as
// the layers, each with a time.
func alignHistory(history []ocispecs.History, layers []layerInfo) []ocispecs.History {
	out := make([]ocispecs.History, 0, len(history)+len(layers))
	n := 0
	for _, h := range history {
		if !h.EmptyLayer && n >= len(layers) {
			h.EmptyLayer = true // a config that claims more layers than there are
		}
		if !h.EmptyLayer {
			if h.Created == nil {
				h.Created = made(layers[n])
			}
			n++
		}
		out = append(out, h)
	}
	for _, l := range layers[n:] {
		out = append(out, ocispecs.History{Created: made(l), CreatedBy: l.name, Comment: "kiln.exporter.image.v0"})
	}
	fillTimes(out)
	return out
}

func made(l layerInfo) *time.Time {
	if l.created.IsZero() {
		return nil
	}
	t := l.created.UTC()
	return &t
}

// fillTimes gives entries without a time (those that made no layer) that of the
// layer before them, and those in front of the first new layer that layer's own:
// the base image's would be years too early.
func fillTimes(history []ocispecs.History) {
	var created *time.Time
	missing := false
	for _, h := range history {
		if h.Created == nil {
			missing = true
			continue
		}
		created = h.Created
		if missing {
			break
		}
	}
	missing = false
	for i := range history {
		h := &history[i]
		switch {
		case h.Created == nil:
			missing = true
			h.Created = created
		case missing:
			created = h.Created
		}
	}
}

// clampHistory lets no time be later than epoch but those that came with the base image.
func clampHistory(history, base []ocispecs.History, epoch *time.Time) {
	if epoch == nil {
		return
	}
	shared := true
	for i := range history {
		h := &history[i]
		if shared && i < len(base) && reflect.DeepEqual(*h, base[i]) {
			continue
		}
		shared = false
		if h.Created == nil || h.Created.After(*epoch) {
			h.Created = epoch
		}
	}
}
