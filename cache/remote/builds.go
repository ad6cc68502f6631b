package remote

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
)

// PackedBuild is a build that was exported, in the words of who explains builds: one
// that runs elsewhere is compared with it.
type PackedBuild struct {
	Exported time.Time
	Data     []byte
}

// listedBuild is where a packed build is.
type listedBuild struct {
	Exported   int64           `json:"exported"` // seconds since 1970
	Blob       blob.Descriptor `json:"blob"`
	Signatures []signature     `json:"signatures,omitempty"`
}

const (
	buildType = "application/vnd.kiln.cache.build.v1+json+zstd"
	// maxBuilds is how many an index keeps, the last ones: branches that share a
	// cache take turns.
	maxBuilds = 8
	// MaxBuild bounds the bytes of one, unpacked. It is sent with every export, and has
	// room for a folder of some seven thousand files.
	MaxBuild = 2 << 20
)

// check finds what an index may not say of its nth build.
func (b *listedBuild) check(n int) error {
	if n >= maxPerItem || b.Exported < 0 || b.Blob.Size < 0 || b.Blob.Size > MaxBuild || len(b.Blob.MediaType) > maxPerItem ||
		len(b.Signatures) > maxSignatures {
		return formatf("what its index has on builds makes no sense")
	}
	return nil
}

func (b listedBuild) message() message {
	return newMessage("build 1").number(b.Exported).blob(b.Blob)
}

// sentBuild is the packed build of an export, on its way to the store.
type sentBuild struct {
	listedBuild
	blob []byte
}

// packedBuild gives the build's own; nil is none. It asks for it once.
func (x *Exporter) packedBuild(now time.Time) (*sentBuild, error) {
	if x.opt.Packed == nil || x.packed != nil {
		return x.packed, nil
	}
	data := x.opt.Packed()
	if len(data) == 0 || len(data) > MaxBuild {
		return nil, nil
	}
	packed, err := packSmall(data)
	if err != nil {
		return nil, err
	}
	b := &sentBuild{listedBuild{Exported: max(now.Unix(), 0), Blob: descriptor(buildType, packed)}, packed}
	if x.opt.Sign != nil {
		b.Signatures = []signature{sign(x.opt.Sign, b.message())}
	}
	x.packed = b
	return b, nil
}

// mergeBuilds adds those of another index behind the newer ones, as far as there is
// room and back to a time in seconds since 1970.
func (b *builder) mergeBuilds(old []listedBuild, since int64) {
	for _, o := range old {
		have := slices.ContainsFunc(b.Builds, func(n listedBuild) bool { return n.Blob.Digest == o.Blob.Digest })
		if !have && o.Exported >= since && len(b.Builds) < maxBuilds {
			b.Builds = append(b.Builds, o)
		}
	}
}

// Builds reads the packed builds that the cache has, the newest first. What cannot be
// read, or is not signed by a key that is asked for, is left out.
func (i *Import) Builds(ctx context.Context) []PackedBuild {
	select {
	case <-i.loaded:
	case <-ctx.Done():
		return nil
	}
	if i.index == nil {
		return nil
	}
	list := i.index.Builds[:min(len(i.index.Builds), maxBuilds)]
	out := make([]PackedBuild, len(list))
	var group sync.WaitGroup
	for n, b := range list {
		if len(i.opt.Verify) > 0 && !verifiedByAny(i.opt.Verify, b.Signatures, b.message()) {
			continue
		}
		group.Go(func() {
			if data, err := readSmall(ctx, i.store, b.Blob, MaxBuild); err == nil {
				out[n] = PackedBuild{time.Unix(b.Exported, 0), data}
			}
		})
	}
	group.Wait()
	return slices.DeleteFunc(out, func(b PackedBuild) bool { return b.Data == nil })
}
