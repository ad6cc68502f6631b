package blob

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/kiln-build/kiln/cache/internal/tmpfile"
	"golang.org/x/sys/unix"
)

// Chunks gives the chunks of a blob that is kept as a recipe, and nil for others.
// It does not count as a use.
func (s *Store) Chunks(d Digest) []ChunkID {
	f, err := openat(s.recipes, hex.EncodeToString(d[:]), unix.O_RDONLY)
	if err != nil {
		return nil
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() > maxChunk {
		return nil
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil
	}
	r, err := parseRecipe(b)
	if err != nil {
		return nil
	}
	return r.chunks
}

// Size gives what a blob's file takes on the disk, or its recipe without its
// chunks, and 0 for what is not here. It does not count as a use.
func (s *Store) Size(d Digest) int64 {
	name := hex.EncodeToString(d[:])
	return diskSize(s.blobs, name) + diskSize(s.recipes, name)
}

// ChunkSize gives what a chunk takes on the disk. It does not count as a use.
func (s *Store) ChunkSize(id ChunkID) int64 { return diskSize(s.chunks, chunkName(&id)) }

func diskSize(dir *os.File, name string) int64 {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0
	}
	return st.Blocks * 512
}

// Sweep removes the blobs and recipes, then the chunks, that keep does not want
// and no open lease used, and the bytes of downloads that broke off.
func (s *Store) Sweep(keep func(Digest) bool, keepChunk func(ChunkID) bool) error {
	for _, dir := range []*os.File{s.blobs, s.recipes} {
		err := s.sweepFolder(dir, "", func(id [32]byte) bool { return keep(id) })
		if err != nil {
			return fmt.Errorf("sweeping the blobs: %w", err)
		}
	}
	for n := range 256 {
		sub := hex.EncodeToString([]byte{byte(n)})
		err := s.sweepFolder(s.chunks, sub, func(id [32]byte) bool { return keepChunk(id) })
		if err != nil {
			return fmt.Errorf("sweeping the chunks: %w", err)
		}
	}
	if err := s.sweepPartial(); err != nil {
		return fmt.Errorf("sweeping broken-off downloads: %w", err)
	}
	return nil
}

// sweepFolder sweeps dir/sub, in which names are ids in hex but for what sub has of them.
func (s *Store) sweepFolder(dir *os.File, sub string, keep func([32]byte) bool) error {
	return eachName(dir, sub, func(fd int, name string) error {
		var id [32]byte
		b, err := hex.DecodeString(sub + name)
		if err != nil || len(b) != len(id) {
			tmpfile.RemoveStale(fd, name)
			return nil
		}
		copy(id[:], b)
		if keep(id) {
			return nil
		}
		_, err = s.guard.Sweep(&id, func() error { return unix.Unlinkat(fd, name, 0) })
		return err
	})
}

// Drop removes a blob whose bytes a reader found to be others, in both forms.
func (s *Store) Drop(d Digest) error {
	name := hex.EncodeToString(d[:])
	for _, dir := range []*os.File{s.blobs, s.recipes} {
		if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("removing blob %s: %w", d, err)
		}
	}
	return nil
}

// sweepPartial removes the partial files that no Writer has now.
func (s *Store) sweepPartial() error {
	return eachName(s.partial, "", func(fd int, name string) error {
		var d Digest
		if b, err := hex.DecodeString(name); err == nil && len(b) == len(d) {
			copy(d[:], b)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, busy := s.ingested[d]; busy {
			return nil
		}
		return unix.Unlinkat(fd, name, 0)
	})
}

// eachName calls fn for the names in dir/sub; what vanishes meanwhile is no error.
func eachName(dir *os.File, sub string, fn func(fd int, name string) error) error {
	if sub == "" {
		sub = "."
	}
	f, err := openat(dir, sub, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	fd := int(f.Fd())
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		if err := fn(fd, name); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// DropSince removes what changed at or after since (nanoseconds since 1970):
// after a crash of the machine, what may not have reached the disk.
func (s *Store) DropSince(since int64) error {
	drop := func(fd int, name string) error {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Ctim.Nano() < since {
			return err
		}
		return unix.Unlinkat(fd, name, 0)
	}
	for _, dir := range []*os.File{s.blobs, s.recipes, s.partial} {
		if err := eachName(dir, "", drop); err != nil {
			return fmt.Errorf("dropping blobs that were not durable: %w", err)
		}
	}
	for n := range 256 {
		sub := hex.EncodeToString([]byte{byte(n)})
		var st unix.Stat_t
		if err := unix.Fstatat(int(s.chunks.Fd()), sub, &st, 0); err != nil || st.Mtim.Nano() < since {
			continue
		}
		if err := eachName(s.chunks, sub, drop); err != nil {
			return fmt.Errorf("dropping chunks that were not durable: %w", err)
		}
	}
	return nil
}
