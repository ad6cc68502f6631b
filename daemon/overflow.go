package daemon

import (
	"bytes"
	"io"
	"os"

	"github.com/moby/buildkit/client"

	"github.com/kiln-build/kiln/daemon/history"
)

const (
	// maxOverflow bounds what is kept of one build's status stream on the disk, in
	// bytes. What comes when that is full is kept in memory while there is room.
	maxOverflow = 256 << 20
	// maxOverflowing bounds how many messages that are.
	maxOverflowing = 2_000_000
)

// overflow is the beginning of a status stream that memory is not spent on: a file
// without a name, in the form of the history's. It is written under the lock of its
// build, and read beside that. The file is closed when the last user has let go.
type overflow struct {
	file    *os.File
	offsets []int64 // where each message begins
	size    int64
	full    bool
}

// newOverflow makes one in a folder of temporary files.
func newOverflow(temp string) (*overflow, error) {
	f, err := os.CreateTemp(temp, "status-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return &overflow{file: f}, nil
}

// add appends a message, unless that is more than is kept. After one that is not
// none is, so that what there is has no gaps.
func (o *overflow) add(s *client.SolveStatus) {
	if o.full {
		return
	}
	var data bytes.Buffer
	for _, m := range s.Marshal() {
		if err := history.WriteStatus(&data, m); err != nil {
			o.full = true
			return
		}
	}
	if o.size+int64(data.Len()) > maxOverflow || len(o.offsets) >= maxOverflowing {
		o.full = true
		return
	}
	if _, err := o.file.WriteAt(data.Bytes(), o.size); err != nil {
		o.full = true // a disk without room keeps no build from going on
		return
	}
	o.offsets = append(o.offsets, o.size)
	o.size += int64(data.Len())
}

// from gives the messages from a number on; nil where there are none.
func (o *overflow) from(n int) io.Reader {
	if o == nil || n >= len(o.offsets) {
		return nil
	}
	return io.NewSectionReader(o.file, o.offsets[n], o.size-o.offsets[n])
}

// close ends it. Nobody reads it any more.
func (o *overflow) close() {
	if o != nil {
		o.file.Close()
	}
}
