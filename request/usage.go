package request

import "time"

// Usage is one line of what an engine's state folder holds.
type Usage struct {
	ID          string // of the record, layer or mount
	Kind        string // in BuildKit's names: "regular", "internal", "exec.cachemount" and the like
	Description string
	Size        int64 // what it adds to what those have that it stands on
	Shared      bool  // parts of it are used by others too
	InUse       bool  // a build holds it
	Created     time.Time
	LastUsed    time.Time
	Uses        int
	Parents     []string
}

// Mutable reports whether it changes by being used: it is no record and no layer.
func (u Usage) Mutable() bool { return u.Kind != "regular" && u.Kind != "internal" }

// Prune says what is to be collected: whatever no build holds, within these bounds.
type Prune struct {
	// All collects what parts of the worker remember, too.
	All bool
	// KeepDuration keeps what was used since.
	KeepDuration time.Duration
	// MaxUsed is how large the state folder may be, MinFree how much is to be free
	// on the disk. What may go goes, longest unused first, until both hold; but while
	// the folder is no larger than Reserved nothing goes. Where all are zero all goes.
	MaxUsed, MinFree, Reserved DiskSpace
	// Filter says what may be collected; nil is everything.
	Filter func(Usage) bool
}

// OnDisk gives p with shares of a disk of that size as bytes.
func (p Prune) OnDisk(size int64) Prune {
	for _, d := range []*DiskSpace{&p.MaxUsed, &p.MinFree, &p.Reserved} {
		*d = DiskSpace{Bytes: d.Of(size)}
	}
	return p
}
