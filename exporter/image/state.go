package image

import (
	"context"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/layer"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// State gives the tree of a chain, with its files in the pool.
func State(ctx context.Context, env exporter.Env, id cache.ChainID) (tree.Entry, error) {
	if env.Source != nil {
		if err := env.Source.Unpack(ctx, id); err != nil {
			return tree.Entry{}, err
		}
	}
	return env.Cache.Merged(id)
}

// GoneFile turns the error of a file that a tree has and the pool does not into
// that of its layer. Which one it was cannot be told from the state; the top one
// stands for all, and solving again finds the others.
func GoneFile(c *cache.Cache, id cache.ChainID, err error) error {
	if err == nil {
		return nil
	}
	link, cerr := c.Chain(id)
	if cerr != nil {
		return err
	}
	return gone(link.Layer, err)
}

// PlatformFolder gives the name of the folder that a platform's files go into
// where there are several.
func PlatformFolder(p ocispecs.Platform) string {
	name := strings.NewReplacer("/", "_", `\`, "_", ":", "_").Replace(platforms.FormatAll(p))
	if name == "." || name == ".." {
		return strings.Repeat("_", len(name))
	}
	return name
}

// SameTime gives the options that let everything have one time; nil is its own.
func SameTime(epoch *time.Time) layer.Options {
	if epoch == nil {
		return layer.Options{}
	}
	return layer.Options{Clamp: epoch.Unix(), Clamped: true, Same: true}
}
