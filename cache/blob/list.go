package blob

import (
	"encoding/hex"
	"fmt"

	"golang.org/x/sys/unix"
)

// Each calls fn with the blobs that are here as files. It does not count as a use.
func (s *Store) Each(fn func(d Digest, size int64) error) error {
	err := eachName(s.blobs, "", func(fd int, name string) error {
		var d Digest
		b, err := hex.DecodeString(name)
		if err != nil || len(b) != len(d) {
			return nil
		}
		copy(d[:], b)
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil // it has just gone
		}
		return fn(d, st.Size)
	})
	if err != nil {
		return fmt.Errorf("listing the blobs: %w", err)
	}
	return nil
}
