package cache

import (
	"context"
	"time"
)

// Usage is one line of what the state folder holds.
type Usage struct {
	ID          string // of the record, mount or blob
	Kind        string // "regular", "source.local", "exec.cachemount", "internal", as BuildKit names them
	Description string // the vertex's name, the mount's id
	Size        int64  // bytes on disk that go if this is pruned alone
	Shared      bool   // parts of it are used by others too
	InUse       bool   // a build holds it
	Created     time.Time
	LastUsed    time.Time
	Uses        int
	Parents     []string
}

// Usage lists what the folder holds, largest first.
func (c *Cache) Usage(ctx context.Context) ([]Usage, error) { panic("unwritten") }

// PruneOptions say what to collect. The zero value collects what no record leads to.
type PruneOptions struct {
	All          bool             // whatever no build holds
	KeepDuration time.Duration    // keep what was used since; 0 is no such bound
	MaxUsed      int64            // collect, longest unused first, until the folder is at most so large; 0 is no bound
	Filter       func(Usage) bool // consider only these; nil is all
}

// Prune collects and gives what went.
func (c *Cache) Prune(ctx context.Context, o PruneOptions) ([]Usage, error) { panic("unwritten") }
