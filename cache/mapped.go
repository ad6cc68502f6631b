package cache

import (
	"bufio"
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
	"golang.org/x/sys/unix"
)

// Badger maps its tables and logs, and what was looked at stays mapped: with the cache
// of a large context, the process's memory grew by as much as the database holds. So
// the mappings are let go of now and then. The pages stay in the system's page cache,
// and are mapped again, sixteen with each fault, where they are read again.

const (
	// mappedMax is how much of files a process may have mapped before it lets go of
	// the database's part. Half of it is the program itself.
	mappedMax = 64 << 20
	// viewsBetween is how many reads there are between two looks at how much is
	// mapped, which take as long as one or two of them. Each maps 64 KiB at most, for a
	// key and for a value.
	viewsBetween = 128
)

// trimMapped lets go of what Badger has mapped where that is much. It must not be
// called inside view.
func (d *database) trimMapped() {
	// Logs are mapped elsewhere when one is full. Who writes trims by himself.
	if d.mapped() <= mappedMax || !d.flushMu.TryLock() {
		return
	}
	defer d.flushMu.Unlock()
	d.unmapPages()
}

// mappedBytes gives how much of files the process has in its memory.
func mappedBytes() int64 {
	b, err := os.ReadFile("/proc/self/statm") // size, resident, shared, …: proc_pid_statm(5)
	if err != nil {
		return 0
	}
	fields := bytes.Fields(b)
	if len(fields) < 3 {
		return 0
	}
	pages, _ := strconv.ParseInt(string(fields[2]), 10, 64)
	return pages * int64(os.Getpagesize())
}

// unmapPages lets go of the pages of tables and value logs. flushMu is held: nothing
// is written, so that the logs stay where they are mapped. Tables are merged at any
// time, and what took the place of one in memory must not be touched; an iterator holds
// those that it began with.
func (d *database) unmapPages() {
	d.life.RLock()
	defer d.life.RUnlock()
	dir, err := realPath(d.dir)
	if d.badger == nil || err != nil {
		return
	}
	before := d.tableFiles(dir)
	txn := d.badger.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{})
	defer it.Close()
	held := d.tableFiles(dir)
	for path := range held {
		if !before[path] {
			delete(held, path) // it may have come after the iterator, which does not hold it then
		}
	}
	_ = eachMapping(func(path string, addr, size uintptr) {
		if held[path] || filepath.Ext(path) == ".vlog" && filepath.Dir(path) == dir {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, addr, size, unix.MADV_DONTNEED)
		}
	})
}

// tableFiles gives the paths of the tables that are in use.
func (d *database) tableFiles(dir string) map[string]bool {
	files := map[string]bool{}
	for _, t := range d.badger.Tables() {
		files[table.NewFilename(t.ID, dir)] = true
	}
	return files
}

// realPath gives the path that the kernel has for a mapped file's folder.
func realPath(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

// eachMapping calls fn for each file that is mapped into the process. Source of the
// format: proc_pid_maps(5).
func eachMapping(fn func(path string, addr, size uintptr)) error {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		at, path, ok := strings.Cut(lines.Text(), "/")
		if !ok {
			continue
		}
		var from, to uintptr
		if _, err := fmt.Sscanf(at, "%x-%x ", &from, &to); err == nil {
			fn("/"+path, from, to-from)
		}
	}
	return lines.Err()
}
