package image

import (
	"context"
	"io"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter"
)

// A Place is shown the forecast of an image of which layers have yet to be made: in it
// they have digests and sizes that are not theirs, and all else is as it will be. It
// gives where the first of those, which is layer number first of forecast.Layers, is to
// be written while it is made, each time that this begins; nil is nowhere. Everything
// before that layer is as long in the image as in the forecast, but for the digits of
// sizes.
type Place func(forecast *Image, first int) func() io.Writer

// guess is the size of layers in forecasts: most have as many digits.
const guess = 10_000_000

// place shows the forecast to at, where there is something in it that has to be made.
func (a *assembly) place(ctx context.Context, at Place) error {
	for _, img := range a.result.Images {
		if len(img.Attestations) > 0 {
			return nil // what they say is known when everything else is
		}
	}
	found, slots, err := a.slots()
	if err != nil {
		return err
	}
	var first *slot
	for _, s := range slots {
		out, ok := a.layers.known(ctx, s.chain, s.layer, s.clamp)
		if ok {
			a.layers.settle(layerKey{s.layer.ID, s.clamp}, out)
		} else {
			// Digests of their own, or they would count as one.
			out = Layer{ID: s.layer.ID, DiffID: blob.Digest(s.layer.ID), Desc: blob.Descriptor{
				MediaType: a.opts.Method.Compression.MediaType(), Digest: blob.Digest(s.layer.ID), Size: guess,
			}}
			out = rewritten(out, s.clamp)
			if first == nil {
				first = s
			}
		}
		*s.at = out
	}
	if first == nil || pulled(first.layer) || first.layer.Root.Kind != tree.Dir {
		return nil
	}
	forecast, err := a.compose(ctx, found, silent{})
	if err != nil {
		return err
	}
	for i, l := range forecast.Layers() {
		if l.Desc.Digest == first.at.Desc.Digest {
			a.layers.at = at(forecast, i)
			a.layers.placed = layerKey{first.layer.ID, first.clamp}
		}
	}
	return nil
}

// silent is Progress that nobody sees.
type silent struct{}

var _ exporter.Progress = silent{}

func (silent) Step(string) func(error) { return func(error) {} }
