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

// load is what Badger is opened for.
type load uint8

const (
	// absent is where there is no database of Badger's yet: all that was ever written
	// is recent. What settle writes makes it heavy.
	absent load = iota
	// reading is how a database is opened that was closed in order. It makes no
	// files, and starts no compactors: a build that finds everything cached writes
	// nothing, and one that writes little has it in the file of what is recent. A batch
	// that is too large for that makes it light, or heavy if there is more.
	reading
	// light is for small writes. Opening makes two files of twice the size of a
	// memtable, whose first pages the kernel reads ahead by megabytes, and an arena of
	// that size: a small one opens in half the time of a large one. A batch that is
	// larger than a small memtable makes it heavy.
	light
	// heavy has large memtables, of which bulk writes make fewer tables to merge.
	// bulkBytes written make it bulk, and rest light.
	heavy
	// bulk keeps the larger values, which are nodes of trees for the most part, in
	// the value log and not in tables. Keys are hashes, so that every merge of tables
	// rewrites whole levels: a chain of 100,000 steps, 1.4 GB of nodes, had 9 GB
	// written, and 1.8 GB so. But each process that writes to the log leaves a file,
	// which Badger never merges: see closeBadger. Rest makes it light.
	bulk
)

const (
	lightMemTable = 1 << 20
	heavyMemTable = 8 << 20
	// bulkBytes are written before the value log is. Builds that write less, which
	// are those after the first for the most part, leave no file.
	bulkBytes = 32 << 20
	// bulkValue is the size from which values go to the log then. A pointer to one
	// takes 12 bytes of a table, and records are smaller.
	bulkValue = 512
	// bulkLog is the size of a file of the log.
	bulkLog = 64 << 20
)

// baseLevel is how much the first level below the newest tables holds before there
// is another. Keys are hashes, so that every merge into a level rewrites all of it,
// and every table written is waited for: with Badger's own 10 MB a chain of 10,000
// steps (80 MB of tree nodes) took half as long again, one of 100,000 twice as long.
const baseLevel = 64 << 20

// tableSize is that of merged tables. Opening and closing take their time for each:
// a mapping, a check of the index, a sync.
const tableSize = 8 << 20

// badgerOptions are small: opening must take milliseconds, and at rest the
// database must not be felt. Values are mostly hashes, so that compression would
// cost more than it saves; tables are read through the page cache, so that a
// cache of blocks would hold everything twice.
func badgerOptions(dir string, l load, log badger.Logger) badger.Options {
	memTable, logFile, value := int64(lightMemTable), int64(2*lightMemTable), int64(lightMemTable/8)
	switch l {
	case heavy:
		memTable, logFile = heavyMemTable, 2*heavyMemTable
	case bulk:
		memTable, logFile, value = heavyMemTable, bulkLog, bulkValue
	}
	return badger.DefaultOptions(dir).
		WithReadOnly(l == reading).
		WithLogger(log).
		WithMemTableSize(memTable).
		WithNumMemtables(2).
		WithValueThreshold(value).
		WithValueLogFileSize(logFile).
		WithVerifyValueChecksum(true).
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
		WithBaseLevelSize(baseLevel).
		WithBaseTableSize(tableSize)
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

func openBadger(dir string, l load, warn func(error)) (*badger.DB, error) {
	return openWith(badgerOptions(dir, l, badgerLog{warn}))
}

// openFirst opens a database that was closed in order for reading, and any other
// for heavy writes: it has a log to be replayed, which may be one of a large memtable,
// and one that does not fit into the memtable ends the process. One that is not there
// stays so.
func openFirst(dir string, warn func(error)) (*badger.DB, load, error) {
	if !roomFor(filepath.Dir(dir), openRoom) {
		return nil, absent, unix.ENOSPC
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, absent, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, absent, err
	}
	made, manifest, memtables := false, false, false
	for _, e := range entries {
		made = made || e.Name() != recentFile
		manifest = manifest || e.Name() == badger.ManifestFilename
		memtables = memtables || filepath.Ext(e.Name()) == ".mem"
	}
	l := light
	switch {
	case !made:
		return nil, absent, nil
	case memtables:
		l = heavy
	case manifest:
		// What it has to say of a damaged database the second one says too.
		if b, err := openBadger(dir, reading, func(error) {}); err == nil {
			return b, reading, nil
		}
	}
	b, err := openBadger(dir, l, warn)
	return b, l, err
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
	if strings.HasPrefix(format, "Unable to read") || strings.HasPrefix(format, "Key:") || strings.HasPrefix(format, "Invalid read") {
		return // of a value: whoever reads it has the error too
	}
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
	logs, err := glob(o.Dir, "*.mem", "*.vlog")
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
	d.flushMu.Lock()
	err := d.recent.sync()
	d.flushMu.Unlock()
	if err != nil {
		return err
	}
	return d.syncBadger() // and with it what has come there from the file meanwhile
}

func (d *database) syncBadger() error {
	d.life.RLock()
	defer d.life.RUnlock()
	if d.badger == nil {
		return nil
	}
	return d.badger.Sync()
}

// maxLevel0 is how many tables of level 0 a process leaves to the next. Every
// process that writes to Badger leaves one, and Badger's compactors wait for up to
// a second before they look: without a bound, short builds would leave a table
// each, all of which every later process has to open and to look into.
const maxLevel0 = 8

// closeBadger closes Badger, and merges the tables of level 0 where there are many.
func (d *database) closeBadger() error {
	if _, err := os.Lstat(d.dir); errors.Is(err, fs.ErrNotExist) {
		// Badger would try for ever to write what it has in memory. Nothing can be lost
		// any more, and the process ends.
		return fmt.Errorf("the database cannot be closed: %w", err)
	}
	if d.badger == nil {
		return nil
	}
	d.flushMu.Lock() // somebody may be reading still, and trim what is mapped
	defer d.flushMu.Unlock()
	if err := d.mergeLogs(); err != nil {
		d.warn(err)
	}
	d.life.Lock()
	b := d.badger
	d.badger = nil
	d.life.Unlock()
	level0 := b.Levels()[0]
	if err := b.Close(); err != nil {
		return err
	}
	// What is merged is level 0 and what it meets in the level below, whose size
	// Badger keeps to ten megabytes or so.
	if d.load == reading || level0.NumTables < maxLevel0 || !roomFor(d.dir, headroom+4*level0.Size) {
		return nil
	}
	b, err := openWith(badgerOptions(d.dir, light, badgerLog{d.warn}).WithCompactL0OnClose(true))
	if err != nil {
		return fmt.Errorf("merging the database's small tables: %w", err)
	}
	return b.Close()
}

// maxLogs is how many files the value log may have besides one for each bulkLog
// bytes that are in them.
const maxLogs = 16

// mergeLogs writes the database anew where the value log has many files that are
// not full, all of which every later process has to open. Each was left by a
// process that had written bulkBytes besides, so that what is written anew is in
// proportion to what was written since that was last done. flushMu is held, or
// nobody writes any more.
func (d *database) mergeLogs() error {
	if d.load != bulk || d.damaged.Load() {
		return nil
	}
	logs, err := glob(d.dir, "*.vlog")
	if err != nil {
		return err
	}
	n, bytes := 0, int64(0)
	for _, path := range logs {
		if st, err := os.Lstat(path); err == nil && st.Size() >= bulkValue {
			n, bytes = n+1, bytes+min(st.Size(), bulkLog)
		}
	}
	if int64(n) <= maxLogs+bytes/bulkLog || !roomFor(d.dir, headroom+2*bytes) {
		return nil
	}
	if err := d.rewrite(); err != nil {
		return fmt.Errorf("merging the database's logs: %w", err)
	}
	return nil
}

// reopen closes Badger and opens it for another load.
func (d *database) reopen(l load) error {
	d.life.Lock()
	defer d.life.Unlock()
	if d.badger != nil {
		if err := d.badger.Close(); err != nil {
			return err
		}
	}
	b, err := openBadger(d.dir, l, d.warn)
	if err != nil {
		return err
	}
	d.badger, d.load = b, l
	return nil
}
