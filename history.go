package kiln

import (
	"time"

	"github.com/kiln-build/kiln/cache/blob"
)

// HistoryConfig says which records of builds a daemon keeps. Without it those of
// the last 48 hours stay, and 50 whatever their age.
type HistoryConfig struct {
	// MaxAge is for how long records stay that are not among the newest MaxEntries.
	MaxAge Duration `toml:"maxAge"`
	// MaxEntries is how many stay whatever their age; 0 keeps no records at all.
	MaxEntries *int `toml:"maxEntries"`
}

// What BuildKit keeps where nothing is said.
const (
	defaultEntries = 50
	defaultAge     = 48 * time.Hour
)

// Off reports whether no records are to be kept.
func (c *HistoryConfig) Off() bool { return c != nil && c.MaxEntries != nil && *c.MaxEntries <= 0 }

// Bounds gives how many records stay whatever their age, and for how long others do.
func (c *HistoryConfig) Bounds() (entries int, age time.Duration) {
	if c == nil {
		return defaultEntries, defaultAge
	}
	if c.MaxEntries != nil {
		entries = *c.MaxEntries
	}
	return entries, c.MaxAge.Duration
}

// Blobs are those of the state folder.
func (e *Engine) Blobs() *blob.Store { return e.cache.Blobs() }
