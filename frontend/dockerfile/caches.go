package dockerfile

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kiln-build/kiln/frontend"
)

// cacheFrom is the option in which the callers of old name images whose caches are to
// be read, parted by commas. Newer ones tell the engine itself.
const cacheFrom = "cache-from"

// readCaches has the engine read the caches that the request names as of old.
func readCaches(ctx context.Context, b frontend.Bridge, opts map[string]string) error {
	list := opts[cacheFrom]
	if list == "" {
		return nil
	}
	reader, ok := b.(frontend.CacheReader)
	if !ok {
		return errors.New(cacheFrom + ": caches that a frontend names are not supported here")
	}
	var caches []frontend.Cache
	for ref := range strings.SplitSeq(list, ",") {
		caches = append(caches, frontend.Cache{Type: "registry", Attrs: map[string]string{"ref": ref}})
	}
	if err := reader.ReadCaches(ctx, caches); err != nil {
		return fmt.Errorf("%s: %w", cacheFrom, err)
	}
	return nil
}
