package caller

import (
	"fmt"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// room is how many bytes a client may still send: nine tenths of what is free on
// the disk when it begins, so that a client that never stops sending does not end
// the builds of others.
type room struct{ left, whole int64 }

// roomAt gives the room in a folder.
func roomAt(dir string) (room, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return room{}, fmt.Errorf("asking what is free on the disk of %s: %w", dir, err)
	}
	n := int64(st.Bavail) * st.Bsize / 10 * 9
	return room{n, n}, nil
}

// take keeps place for a file.
func (r *room) take(size int64) error {
	if size > r.left {
		return fmt.Errorf("the folder is larger than what is free on the daemon's disk: %s may be sent", units.BytesSize(float64(r.whole)))
	}
	r.left -= size
	return nil
}
