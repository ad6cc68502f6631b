package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache/internal/tmpfile"
)

// usedLog remembers when records and mounts were used, and how often, in a file
// of its own: a build that finds everything cached writes nothing else, and only
// Usage and Prune ever read it. Rows are appended; a torn one is skipped.
type usedLog struct {
	path string

	mu  sync.Mutex
	new map[[16]byte]use // since the last flush
}

// use is when something was last used, and how often.
type use struct {
	last  time.Time
	count uint32
}

// A row: the first 16 bytes of the object's name, the time in seconds since 1970,
// the count, and the crc32c of those; numbers are little-endian.
const usedRow = 16 + 8 + 4 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (u *usedLog) note(id *[32]byte, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.new == nil {
		u.new = map[[16]byte]use{}
	}
	k := [16]byte(id[:16])
	u.new[k] = use{last: now, count: u.new[k].count + 1}
}

// pass notes that an object counts as used at that time, by its being needed.
func (u *usedLog) pass(id *[32]byte, at time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.new == nil {
		u.new = map[[16]byte]use{}
	}
	k := [16]byte(id[:16])
	if v := u.new[k]; v.last.Before(at) {
		u.new[k] = use{last: at, count: v.count}
	}
}

// flush appends what is new.
func (u *usedLog) flush() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.new) == 0 {
		return nil
	}
	f, err := os.OpenFile(u.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("noting what was used: %w", err)
	}
	_, err = f.Write(appendUses(nil, u.new))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("noting what was used: %w", tmpfile.Explain(err))
	}
	u.new = nil
	return nil
}

func appendUses(b []byte, uses map[[16]byte]use) []byte {
	for k, v := range uses {
		start := len(b)
		b = append(b, k[:]...)
		b = binary.LittleEndian.AppendUint64(b, uint64(v.last.Unix()))
		b = binary.LittleEndian.AppendUint32(b, v.count)
		b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
	}
	return b
}

// read gives all uses, those that are not flushed too.
func (u *usedLog) read() (map[[16]byte]use, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.readLocked()
}

func (u *usedLog) readLocked() (map[[16]byte]use, error) {
	b, err := os.ReadFile(u.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading what was used: %w", err)
	}
	uses := parseUses(b)
	for k, v := range u.new {
		addUse(uses, k, v)
	}
	return uses, nil
}

func parseUses(b []byte) map[[16]byte]use {
	uses := map[[16]byte]use{}
	for len(b) >= usedRow {
		row := b[:usedRow]
		if crc32.Checksum(row[:usedRow-4], castagnoli) != binary.LittleEndian.Uint32(row[usedRow-4:]) {
			// A torn row: the next good one may begin anywhere.
			b = b[1:]
			continue
		}
		sec := int64(binary.LittleEndian.Uint64(row[16:]))
		addUse(uses, [16]byte(row[:16]), use{last: time.Unix(sec, 0), count: binary.LittleEndian.Uint32(row[24:])})
		b = b[usedRow:]
	}
	return uses
}

func addUse(uses map[[16]byte]use, k [16]byte, v use) {
	old := uses[k]
	if old.last.After(v.last) {
		v.last = old.last
	}
	v.count += old.count
	uses[k] = v
}

// rewrite replaces the file by one with those of the uses that keep wants.
func (u *usedLog) rewrite(keep func([16]byte) bool) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	uses, err := u.readLocked()
	if err != nil {
		return err
	}
	for k := range uses {
		if !keep(k) {
			delete(uses, k)
		}
	}
	temp := u.path + ".new"
	if err = os.WriteFile(temp, appendUses(nil, uses), 0o600); err == nil {
		err = os.Rename(temp, u.path)
	}
	if err != nil {
		_ = os.Remove(temp)
		return fmt.Errorf("noting what was used: %w", tmpfile.Explain(err))
	}
	u.new = nil
	return nil
}
