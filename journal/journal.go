// Package journal remembers what became of the steps of builds, and explains it.
//
// A Build is one line of the journal: when it was, what it was of, how it ended,
// and the name of its report. A Report is the Steps of a build, with what their
// keys were made of: what each does, what it reads, what answered for it. Equal
// reports are kept once, under a name made of what tells them apart, so that a
// build that finds everything cached adds a line and nothing else.
//
// An Explanation says of each step whether it was cached and by what, and of a
// step that was not, in which Reasons it differs from its nearest earlier run (see
// nearest.go for which one that is).
//
// The lines are in a file of the state folder, the reports in a bucket of its
// database, and the trees of the local folders that the reports speak of are kept
// there (cache.KeepTree), so that files can be compared. All are bounded:
// maxBuilds lines, maxReports reports of maxReportBytes together. docs/formats.md
// draws the forms.
//
// A journal can only know less: what is damaged or gone is left out, and no build
// fails for it. A Journal is safe for concurrent use.
package journal

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/explain"
)

// What the journal is bounded to. Builds that find everything cached share a
// report, so that there are fewer reports than builds.
const (
	maxBuilds      = 256
	maxAdopted     = 16 // builds that ran elsewhere, besides
	maxReports     = 64
	maxReportBytes = 16 << 20
	// maxReport bounds one report: some ten thousand steps.
	maxReport = 4 << 20
	// maxLines is how long the file grows before it is cut to maxBuilds.
	maxLines = 96 << 10
)

// Build is a line of the journal.
type Build struct {
	ID string
	// Project is what it was a build of, for people: the build context, and the
	// Dockerfile and target where they are not the default.
	Project            string
	Started, Completed time.Time
	Status             explain.Status
	// From names the remote cache that knew of it; empty is a build that ran here.
	From string

	report name
}

// IsName says whether a build can be called so.
func IsName(s string) bool {
	ok := func(r rune) bool {
		return r == '-' || r == '_' || r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
	}
	return s != "" && len(s) <= 128 && strings.IndexFunc(s, func(r rune) bool { return !ok(r) }) < 0
}

// name is the name of a report.
type name [32]byte

// Journal is the journal of a state folder.
type Journal struct {
	cache   *cache.Cache
	reports *cache.Bucket

	mu sync.Mutex // guards the file
}

// Open gives the journal of a state folder. It reads nothing.
func Open(c *cache.Cache) *Journal {
	return &Journal{cache: c, reports: c.Bucket("journal")}
}

func (j *Journal) path() string { return j.cache.Path("builds") }

// Add notes a build and what became of its steps.
func (j *Journal) Add(b Build, r *Report) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	b.report = r.name()
	fresh := !j.reports.Has(b.report[:])
	if fresh {
		data, err := r.encode()
		if err != nil {
			return fmt.Errorf("writing the journal: %w", err)
		}
		if err := j.reports.Put(b.report[:], data); err != nil {
			return fmt.Errorf("writing the journal: %w", err)
		}
		for name, root := range r.trees() {
			if root.Kind != tree.Dir {
				continue
			}
			if err := j.cache.KeepTree(name, root); err != nil {
				return fmt.Errorf("writing the journal: %w", err)
			}
		}
	}
	size, err := j.append(b)
	if err == nil && (fresh || size > maxLines) {
		err = j.trim(size)
	}
	if err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	return nil
}

// append adds a line, and gives the size of the file.
func (j *Journal) append(b Build) (int64, error) {
	f, err := os.OpenFile(j.path(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	_, err = f.Write(b.line())
	end, serr := f.Seek(0, 1)
	return end, errors.Join(err, serr, f.Close())
}

// A line has these fields between tabs, of which the first is the crc32c of the rest,
// and one more where the build ran elsewhere.
const lineFields = 7

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (b *Build) line() []byte {
	rest := fmt.Appendf(nil, "%s\t%d\t%d\t%s\t%x\t%s",
		b.ID, b.Started.UnixNano(), b.Completed.UnixNano(), b.Status, b.report[:], strconv.Quote(b.Project))
	if b.From != "" {
		rest = append(append(rest, '\t'), strconv.Quote(b.From)...)
	}
	rest = append(rest, '\n')
	return append(fmt.Appendf(nil, "%08x\t", crc32.Checksum(rest, castagnoli)), rest...)
}

// parseLine reads what line wrote, without the line's end; false is a damaged one.
func parseLine(line string) (b Build, ok bool) {
	fields := strings.Split(line, "\t")
	if len(fields) != lineFields && len(fields) != lineFields+1 {
		return b, false
	}
	sum, err := strconv.ParseUint(fields[0], 16, 32)
	if err != nil || uint32(sum) != crc32.Checksum([]byte(line[len(fields[0])+1:]+"\n"), castagnoli) {
		return b, false
	}
	started, err1 := strconv.ParseInt(fields[2], 10, 64)
	completed, err2 := strconv.ParseInt(fields[3], 10, 64)
	project, err3 := strconv.Unquote(fields[6])
	report, err4 := parseSum(fields[5])
	if len(fields) > lineFields {
		b.From, err = strconv.Unquote(fields[lineFields])
	}
	if errors.Join(err, err1, err2, err3, err4) != nil {
		return b, false
	}
	return Build{
		ID: fields[1], Started: time.Unix(0, started), Completed: time.Unix(0, completed),
		Status: explain.Status(fields[4]), Project: project, From: b.From, report: name(report),
	}, true
}

// Builds gives the builds that ran here, the oldest first.
func (j *Journal) Builds() ([]Build, error) {
	all, err := j.all()
	return slices.DeleteFunc(all, func(b Build) bool { return b.From != "" }), err
}

// all gives those that ran elsewhere too.
func (j *Journal) all() ([]Build, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.builds()
}

func (j *Journal) builds() ([]Build, error) {
	data, err := os.ReadFile(j.path())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	var out []Build
	for line := range bytes.Lines(data) {
		if b, ok := parseLine(strings.TrimSuffix(string(line), "\n")); ok {
			out = append(out, b)
		}
	}
	return out, nil
}

// Find gives a build by its id or the beginning of it; "last" and "latest" are the
// newest. One that is not there is an explain.ErrNotFound.
func (j *Journal) Find(ref string) (Build, error) {
	builds, err := j.Builds()
	if err != nil {
		return Build{}, err
	}
	var found []Build
	for _, b := range slices.Backward(builds) {
		switch {
		case ref == "last" || ref == "latest" || b.ID == ref:
			return b, nil
		case ref != "" && strings.HasPrefix(b.ID, ref):
			found = append(found, b)
		}
	}
	switch {
	case len(builds) == 0:
		return Build{}, fmt.Errorf("no build of this state folder has come as far as its steps: build %q is %w", ref, explain.ErrNotFound)
	case len(found) == 0:
		return Build{}, fmt.Errorf("build %q is %w, which has the last %d", ref, explain.ErrNotFound, len(builds))
	case len(found) == 1:
		return found[0], nil
	}
	return Build{}, fmt.Errorf("%d builds begin with %q: %w", len(found), ref, explain.ErrNotFound)
}

// Report gives what became of a build's steps. One that is kept no longer is an
// explain.ErrNotFound.
func (j *Journal) Report(b Build) (*Report, error) {
	data, ok := j.reports.Get(b.report[:])
	if !ok {
		return nil, fmt.Errorf("the steps of build %s: %w", b.ID, explain.ErrNotFound)
	}
	r, err := decodeReport(data)
	if err != nil {
		return nil, fmt.Errorf("the steps of build %s: %w: %w", b.ID, explain.ErrNotFound, err)
	}
	return r, nil
}

// within gives the builds that the bounds leave, in the order that they had.
func within(builds []Build) []Build {
	own, adopted := maxBuilds, maxAdopted
	var out []Build
	for _, b := range slices.Backward(builds) {
		room := &own
		if b.From != "" {
			room = &adopted
		}
		if *room > 0 {
			*room--
			out = append(out, b)
		}
	}
	slices.Reverse(out)
	return out
}

// trim removes what is beyond the bounds: lines of a file of that size, and the
// reports and trees that no line leads to. The caller has j.mu.
func (j *Journal) trim(size int64) error {
	builds, err := j.builds()
	if err != nil {
		return err
	}
	builds = within(builds)
	sizes := map[name]int{}
	err = j.reports.Each(nil, func(k, v []byte) error {
		if len(k) == len(name{}) {
			sizes[name(k)] = len(v)
		}
		return nil
	})
	if err != nil {
		return err
	}
	keep := map[name]bool{}
	total := 0
	// What ran elsewhere takes the room that is left.
	wanted := slices.Clone(builds)
	slices.SortStableFunc(wanted, func(a, b Build) int { return cmp.Compare(min(len(b.From), 1), min(len(a.From), 1)) })
	for _, b := range slices.Backward(wanted) {
		if n, ok := sizes[b.report]; ok && !keep[b.report] && len(keep) < maxReports && total+n <= maxReportBytes {
			keep[b.report] = true
			total += n
		}
	}
	dropped := false
	for n := range sizes {
		if !keep[n] {
			dropped = true
			if err := j.reports.Delete(n[:]); err != nil {
				return err
			}
		}
	}
	if dropped {
		if err := j.dropTrees(keep); err != nil {
			return err
		}
	}
	if size <= maxLines {
		return nil
	}
	var lines []byte
	for _, b := range builds {
		lines = append(lines, b.line()...)
	}
	temp := j.path() + ".new"
	if err := os.WriteFile(temp, lines, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, j.path())
}

// dropTrees lets go the trees that none of the kept reports speak of.
func (j *Journal) dropTrees(keep map[name]bool) error {
	wanted := map[string]bool{}
	for n := range keep {
		if r, err := j.Report(Build{report: n}); err == nil {
			for name := range r.trees() {
				wanted[name] = true
			}
		}
	}
	names, err := j.cache.KeptTrees()
	for _, name := range names {
		if err == nil && !wanted[name] {
			err = j.cache.ForgetTree(name)
		}
	}
	return err
}
