package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const (
	// Opening makes two files of twice the size of a memtable, whose first pages
	// the kernel reads ahead by megabytes, and an arena of that size: a small one
	// opens in half the time of a large one. A batch that is larger than a small
	// one has Badger opened again with large ones, of which bulk writes make fewer
	// tables to merge.
	smallMemTable = 1 << 20
	largeMemTable = 8 << 20
)

// baseLevel is how much the first level below the newest tables holds before there
// is another. Keys are hashes, so that every merge into a level rewrites all of it,
// and every table written is waited for: with Badger's own 10 MB a chain of 10,000
// steps (80 MB of tree nodes) took half as long again, one of 100,000 twice as long.
const baseLevel = 64 << 20

// badgerOptions are small: opening must take milliseconds, and at rest the
// database must not be felt. Values are mostly hashes, so that compression would
// cost more than it saves; tables are read through the page cache, so that a
// cache of blocks would hold everything twice. All but the largest values are in
// the tables, and the value log stays empty.
func badgerOptions(dir string, memTable int64, log badger.Logger) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(log).
		WithMemTableSize(memTable).
		WithNumMemtables(2).
		WithValueThreshold(smallMemTable / 8).
		WithValueLogFileSize(2 * memTable).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithCompression(options.None).
		WithChecksumVerificationMode(options.OnBlockRead).
		WithNumCompactors(2).
		WithCompactL0OnClose(false).
		WithDetectConflicts(false).
		WithMetricsEnabled(false).
		WithBypassLockGuard(true).
		WithNumGoroutines(2).
		WithNumLevelZeroTables(maxLevel0).
		WithBaseLevelSize(baseLevel)
}

// setAside tells damage from what a fresh database would meet just so.
func setAside(err error) bool {
	for _, e := range []error{unix.EACCES, unix.EPERM, unix.EROFS, unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, e) {
			return false
		}
	}
	return true
}

func openBadger(dir string, memTable int64, warn func(error)) (*badger.DB, error) {
	return openWith(badgerOptions(dir, memTable, badgerLog{warn}))
}

func openWith(o badger.Options) (b *badger.DB, err error) {
	if !roomFor(filepath.Dir(o.Dir), openRoom) {
		return nil, unix.ENOSPC
	}
	if err := checkFiles(o); err != nil {
		return nil, err
	}
	defer func() {
		// Badger asserts what a damaged file does not hold.
		if r := recover(); r != nil {
			b, err = nil, fmt.Errorf("badger: %v", r)
		}
	}()
	// Timestamps are given here: see database.version.
	if b, err = badger.OpenManaged(o); err != nil {
		return nil, err
	}
	b.SetDiscardTs(b.MaxVersion())
	return b, nil
}

// badgerLog passes Badger's errors on and leaves the rest.
type badgerLog struct{ warn func(error) }

func (l badgerLog) Errorf(format string, args ...any) {
	l.warn(fmt.Errorf("badger: %s", strings.TrimSpace(fmt.Sprintf(format, args...))))
}
func (l badgerLog) Warningf(string, ...any) {}
func (l badgerLog) Infof(string, ...any)    {}
func (l badgerLog) Debugf(string, ...any)   {}

// openRoom is the free disk space that opening takes at most: Badger writes to
// the first pages of new mapped files.
const openRoom = 1 << 20

// roomFor reports whether that many bytes are free on the disk of dir.
func roomFor(dir string, bytes int64) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) != nil || int64(fs.Bavail)*fs.Bsize >= bytes
}

// checkFiles looks at the files of a database before Badger does.
//
// A process that was killed while it made a log file leaves an empty one, which
// Badger takes for damage: it is removed. And of the tables that the manifest
// lists the ends are checked, where their indexes are: Badger reads those in
// goroutines of its own, and a damaged one ends the process.
func checkFiles(o badger.Options) error {
	for _, pattern := range []string{"*.mem", "*.vlog"} {
		logs, err := filepath.Glob(filepath.Join(o.Dir, pattern))
		if err != nil {
			return err
		}
		for _, path := range logs {
			if st, err := os.Lstat(path); err == nil && st.Size() == 0 {
				if err := os.Remove(path); err != nil {
					return err
				}
			}
		}
	}
	f, err := os.Open(filepath.Join(o.Dir, badger.ManifestFilename))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	manifest, _, err := badger.ReplayManifestFile(f, o.ExternalMagicVersion, o)
	if err != nil {
		return err
	}
	for id := range manifest.Tables {
		path := table.NewFilename(id, o.Dir)
		if err := checkTable(path); err != nil {
			return fmt.Errorf("table %s: %w", filepath.Base(path), err)
		}
	}
	return nil
}

// checkTable checks the end of a table: the index, its length in four bytes, the
// index's checksum, its length in four bytes; big-endian.
func checkTable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	end := st.Size()
	field := func(limit int64) ([]byte, error) {
		var length [4]byte
		if end -= 4; end < 0 {
			return nil, errDamaged
		}
		if _, err := f.ReadAt(length[:], end); err != nil {
			return nil, err
		}
		n := int64(binary.BigEndian.Uint32(length[:]))
		if end -= n; n > limit || end < 0 {
			return nil, errDamaged
		}
		b := make([]byte, n)
		_, err := f.ReadAt(b, end)
		return b, err
	}
	sum, err := field(64)
	if err != nil {
		return err
	}
	index, err := field(end)
	if err != nil {
		return err
	}
	if len(sum) == 0 || len(index) == 0 {
		// Of nothing the checksum is right.
		return errDamaged
	}
	var want pb.Checksum
	if err := proto.Unmarshal(sum, &want); err != nil {
		return errDamaged
	}
	return y.VerifyChecksum(index, &want)
}

// sync makes what was flushed durable.
func (d *database) sync() error {
	d.life.RLock()
	defer d.life.RUnlock()
	return d.badger.Sync()
}

// maxLevel0 is how many tables of level 0 a process leaves to the next. Every
// process that writes anything leaves one, and Badger's compactors wait for up to
// a second before they look: without a bound, short builds would leave a table
// each, all of which every later process has to open and to look into.
const maxLevel0 = 8

// closeBadger closes Badger, and merges the tables of level 0 where there are many.
func (d *database) closeBadger() error {
	level0 := d.badger.Levels()[0]
	if err := d.badger.Close(); err != nil {
		return err
	}
	// What is merged is level 0 and what it meets in the level below, whose size
	// Badger keeps to ten megabytes or so.
	if level0.NumTables < maxLevel0 || !roomFor(d.dir, headroom+4*level0.Size) {
		return nil
	}
	b, err := openWith(badgerOptions(d.dir, smallMemTable, badgerLog{d.warn}).WithCompactL0OnClose(true))
	if err != nil {
		return fmt.Errorf("merging the database's small tables: %w", err)
	}
	return b.Close()
}

// reopen closes Badger and opens it with memtables of another size.
func (d *database) reopen(memTable int64) error {
	d.life.Lock()
	defer d.life.Unlock()
	if err := d.badger.Close(); err != nil {
		return err
	}
	b, err := openBadger(d.dir, memTable, d.warn)
	if err != nil {
		return err
	}
	d.badger = b
	return nil
}
