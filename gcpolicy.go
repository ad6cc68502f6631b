package kiln

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/docker/go-units"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/request"
)

// GCConfig says what the state folder may take, in buildkitd.toml's keys. The zero
// GCConfig collects by default policies that depend on the size of the disk.
type GCConfig struct {
	// GC switches collecting after builds on or off; nil is on.
	GC *bool `toml:"gc"`
	// ReservedSpace, MaxUsedSpace and MinFreeSpace are the bounds of the default
	// policies; see GCPolicy. Where none is set they are a tenth of the disk, 10 GB
	// at most; four fifths, 100 GB at most; and a fifth.
	ReservedSpace DiskSpace `toml:"reservedSpace"`
	MaxUsedSpace  DiskSpace `toml:"maxUsedSpace"`
	MinFreeSpace  DiskSpace `toml:"minFreeSpace"`
	// KeepStorage is an old name of ReservedSpace.
	KeepStorage DiskSpace `toml:"gckeepstorage"`
	// Policies take the place of the default ones.
	Policies []GCPolicy `toml:"gcpolicy"`
}

// GCPolicy is one rule of collecting. Of what it is about, what was not used for
// KeepDuration goes, longest unused first, until its bounds hold: the folder is no
// larger than MaxUsedSpace, and MinFreeSpace is free on the disk; but while the
// folder is no larger than ReservedSpace nothing goes. Without bounds all of it goes.
type GCPolicy struct {
	// All is about what parts of the worker remember, too.
	All bool `toml:"all"`
	// Filters say what the policy is about, one of them has to hold: "type==regular".
	Filters       []string  `toml:"filters"`
	KeepDuration  Duration  `toml:"keepDuration"`
	ReservedSpace DiskSpace `toml:"reservedSpace"`
	MaxUsedSpace  DiskSpace `toml:"maxUsedSpace"`
	MinFreeSpace  DiskSpace `toml:"minFreeSpace"`
	// KeepBytes is an old name of ReservedSpace.
	KeepBytes DiskSpace `toml:"keepBytes"`
}

// Duration is a time.Duration that configuration files write as "48h", or as a
// number of seconds. It is a struct because a number would be read as nanoseconds.
type Duration struct{ time.Duration }

// UnmarshalText reads a duration.
func (d *Duration) UnmarshalText(text []byte) error {
	s := strings.Trim(string(text), `"`)
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n >= 0 && n <= int64(1<<63-1)/int64(time.Second) {
		d.Duration = time.Duration(n) * time.Second
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("%q is no duration; 48h is one, and so is a number of seconds", s)
	}
	d.Duration = v
	return nil
}

// DiskSpace is a number of bytes, or a share of the disk.
type DiskSpace = request.DiskSpace

// The bounds of the default policies, as buildkitd has them.
const (
	defaultReserved = 10 * units.GB
	defaultMaxUsed  = 100 * units.GB
)

// policies gives the rules for a disk of that size, none where nothing is to be
// collected unasked.
func (c GCConfig) policies(disk int64) []GCPolicy {
	if c.GC != nil && !*c.GC {
		return nil
	}
	if len(c.Policies) > 0 {
		return c.Policies
	}
	bounds := GCPolicy{ReservedSpace: cmp.Or(c.ReservedSpace, c.KeepStorage), MaxUsedSpace: c.MaxUsedSpace, MinFreeSpace: c.MinFreeSpace}
	if bounds.ReservedSpace == (DiskSpace{}) && bounds.MaxUsedSpace == (DiskSpace{}) && bounds.MinFreeSpace == (DiskSpace{}) {
		bounds.ReservedSpace = DiskSpace{Bytes: min(defaultReserved, DiskSpace{Percent: 10}.Of(disk))}
		bounds.MaxUsedSpace = DiskSpace{Bytes: min(defaultMaxUsed, DiskSpace{Percent: 80}.Of(disk))}
		bounds.MinFreeSpace = DiskSpace{Percent: 20}
	}
	old, all := bounds, bounds
	old.KeepDuration, all.All = Duration{60 * 24 * time.Hour}, true
	return []GCPolicy{
		// What is made again most easily, once it takes half a gigabyte.
		{
			Filters:      []string{"type==source.local", "type==exec.cachemount", "type==source.git.checkout"},
			KeepDuration: Duration{48 * time.Hour}, MaxUsedSpace: DiskSpace{Bytes: 512 * units.MB},
		},
		old, bounds, all,
	}
}

// options gives what a policy asks of the cache, on a disk of that size.
func (p GCPolicy) options(disk int64) (cache.PruneOptions, error) {
	o := cache.PruneOptions{
		All: p.All, KeepDuration: p.KeepDuration.Duration,
		MaxUsed: p.MaxUsedSpace.Of(disk), MinFree: p.MinFreeSpace.Of(disk),
		Reserved: cmp.Or(p.ReservedSpace, p.KeepBytes).Of(disk),
	}
	var err error
	if len(p.Filters) > 0 {
		o.Filter, err = UsageFilter(p.Filters)
	}
	return o, err
}

// UsageFilter reads filters in containerd's language, as BuildKit's clients write
// them; one of them has to hold.
func UsageFilter(list []string) (func(cache.Usage) bool, error) {
	f, err := filters.ParseAll(list...)
	if err != nil {
		return nil, fmt.Errorf("failed to parse filter: %w", err)
	}
	return func(u cache.Usage) bool { return f.Match(usageFields(u)) }, nil
}

// filterTerm is one condition of a filter: a field, and what it is compared with.
var filterTerm = regexp.MustCompile(`(?:^|,)([a-z.]+)(?:(==|!=|~=)("(?:\\.|[^"\\])*"|/(?:\\.|[^/\\])*/|\|(?:\\.|[^|\\])*\||[^,]*))?`)

// checkFilters says which filter of a policy cannot be meant. One that never holds would
// leave the state folder to grow, and nobody the wiser.
func (p GCPolicy) checkFilters() error {
	for _, text := range p.Filters {
		if _, err := filters.Parse(text); err != nil {
			return fmt.Errorf("filter %q: want FIELD==VALUE, FIELD!=VALUE or FIELD~=REGEXP: %w", text, err)
		}
		for _, term := range filterTerm.FindAllStringSubmatch(text, -1) {
			if !slices.Contains(usageNames, term[1]) {
				return fmt.Errorf("filter %q: there is no field %q; the fields are %s", text, term[1], strings.Join(usageNames, ", "))
			}
			if term[2] != "" && slices.Contains(usageStates, term[1]) {
				return fmt.Errorf("filter %q: %s has no value, and stands alone", text, term[1])
			}
			if term[2] != "~=" || strings.Contains(term[3], `\`) {
				continue // what is escaped in quotes is the library's to read
			}
			if _, err := regexp.Compile(strings.Trim(term[3], `"/|`)); err != nil {
				return fmt.Errorf("filter %q: %w", text, err)
			}
		}
	}
	return nil
}

// usageNames are the fields that filters can ask for.
var usageNames = []string{"id", "parents", "parent", "description", "type", "inuse", "mutable", "immutable", "shared", "private"}

// usageStates are those fields that are there or not, and have no value.
var usageStates = []string{"inuse", "mutable", "immutable", "shared", "private"}

// usageFields are what filters can ask of a record.
func usageFields(u cache.Usage) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) != 1 {
			return "", false
		}
		switch path[0] {
		case "id":
			return u.ID, true
		case "parents", "parent":
			return strings.Join(u.Parents, ";"), len(u.Parents) > 0
		case "description":
			return u.Description, u.Description != ""
		case "type":
			return u.Kind, u.Kind != ""
		case "inuse":
			return "", u.InUse
		case "mutable":
			return "", u.Mutable()
		case "immutable":
			return "", !u.Mutable()
		case "shared":
			return "", u.Shared
		case "private":
			return "", !u.Shared
		}
		return "", false
	})
}
