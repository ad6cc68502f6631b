package request

import "time"

// Usage is one line of what an engine's state folder holds.
type Usage struct {
	ID          string // of the record, layer or mount
	Kind        string // in BuildKit's names: "regular", "internal", "exec.cachemount" and the like
	Description string
	Size        int64
	Shared      bool // parts of it are used by others too
	InUse       bool // a build holds it
	Created     time.Time
	LastUsed    time.Time
	Uses        int
	Parents     []string
}

// Prune says what is to be collected.
type Prune struct {
	// All collects every record that no build holds, and not only what no record
	// leads to any more.
	All bool
	// KeepDuration keeps what was used since.
	KeepDuration time.Duration
	// MaxUsed is the size in bytes down to which is collected; 0 is no bound.
	MaxUsed int64
	// Filter says what may be collected; nil is everything.
	Filter func(Usage) bool
}
