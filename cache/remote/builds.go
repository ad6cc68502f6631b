package remote

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
)

// Build is a build that was exported, in the words of who explains builds: one that
// runs elsewhere is compared with it.
type Build struct {
	Exported time.Time
	Data     []byte
}

// build is where the words on a build are.
type build struct {
	Exported   int64           `json:"exported"` // seconds since 1970
	Blob       blob.Descriptor `json:"blob"`
	Signatures []signature     `json:"signatures,omitempty"`
}

const (
	buildType = "application/vnd.kiln.cache.build.v1+json+zstd"
	// maxBuilds is how many an index keeps, the last ones: branches that share a
	// cache take turns.
	maxBuilds = 8
	// MaxBuild bounds the bytes of one, unpacked.
	MaxBuild = 8 << 20
)

// check finds what the index may not say of a build.
func (b build) check() bool {
	return b.Exported >= 0 && b.Blob.Size >= 0 && b.Blob.Size <= MaxBuild && len(b.Blob.MediaType) <= maxPerItem &&
		len(b.Signatures) <= maxSignatures
}

func (b build) message() message {
	return newMessage("build 1").number(b.Exported).blob(b.Blob)
}

// spoken are the words on the build that is exported, on their way to the store.
type spoken struct {
	build
	packed []byte
}

// speak gives the words on the build; nil is none. It asks for them once.
func (x *Exporter) speak(now time.Time) (*spoken, error) {
	if x.opt.Build == nil || x.spoken != nil {
		return x.spoken, nil
	}
	data := x.opt.Build()
	if len(data) == 0 || len(data) > MaxBuild {
		return nil, nil
	}
	packed, err := packSmall(data)
	if err != nil {
		return nil, err
	}
	s := &spoken{build{Exported: max(now.Unix(), 0), Blob: descriptor(buildType, packed)}, packed}
	if x.opt.Sign != nil {
		s.Signatures = []signature{sign(x.opt.Sign, s.message())}
	}
	x.spoken = s
	return s, nil
}

// mergeBuilds adds those of another index behind the newer ones, as far as there is
// room and back to a time in seconds since 1970.
func (b *builder) mergeBuilds(old []build, since int64) {
	for _, o := range old {
		have := slices.ContainsFunc(b.Builds, func(n build) bool { return n.Blob.Digest == o.Blob.Digest })
		if !have && o.Exported >= since && len(b.Builds) < maxBuilds {
			b.Builds = append(b.Builds, o)
		}
	}
}

// Builds reads what the cache has on earlier builds, the newest first. What cannot be
// read, or is not signed by a key that is asked for, is left out.
func (i *Import) Builds(ctx context.Context) []Build {
	select {
	case <-i.loaded:
	case <-ctx.Done():
		return nil
	}
	if i.index == nil {
		return nil
	}
	list := i.index.Builds[:min(len(i.index.Builds), maxBuilds)]
	out := make([]Build, len(list))
	var group sync.WaitGroup
	for n, b := range list {
		if len(i.opt.Verify) > 0 && !verifiedByAny(i.opt.Verify, b.Signatures, b.message()) {
			continue
		}
		group.Go(func() {
			if data, err := readSmall(ctx, i.store, b.Blob, MaxBuild); err == nil {
				out[n] = Build{time.Unix(b.Exported, 0), data}
			}
		})
	}
	group.Wait()
	return slices.DeleteFunc(out, func(b Build) bool { return b.Data == nil })
}
