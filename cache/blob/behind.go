package blob

import (
	"os"

	"golang.org/x/sys/unix"
)

const (
	// rarelyRead is the size from which a blob is not left in the system's memory
	// (see behind). Smaller ones, such as the base of a distribution, are few pages,
	// and an export may want them in a moment.
	rarelyRead = 64 << 20
	// behindSize is how much is written to the disk at a time.
	behindSize = 8 << 20
)

// behind writes a large file to the disk behind its writer, and lets the memory go
// that the system holds of it. A large blob is read again by a push or an export, if
// at all, while the files that come out of it are what the next step reads. The
// memory is used for them then: in a virtual machine, where memory that is written
// for the first time costs about 2 ms a megabyte, a pull of eight blobs of 83 MB took
// a fifth less processor time so, and a third fewer seconds. Where memory was used
// before it makes no difference.
//
// Its writer does not wait for a slow disk, but for the last window when the file is
// whole: what the disk has not taken then stays in memory, as that of a small file.
// Writes that keep nothing (RWF_DONTCACHE) were tried: they cost more, being sent off
// one by one, and few file systems know them. It is used by one goroutine; the zero value works.
type behind struct {
	taken int64         // up to here the disk was given the file
	busy  chan struct{} // closed when the disk has what it was given last; nil before
}

// wrote says that f, which is to have size bytes, has end bytes.
func (b *behind) wrote(f *os.File, size, end int64) {
	if size < rarelyRead || end-b.taken < behindSize {
		return
	}
	if b.busy != nil {
		select {
		case <-b.busy:
		default:
			return
		}
	}
	busy, from := make(chan struct{}), b.taken
	b.busy, b.taken = busy, from+behindSize
	go func() {
		defer close(busy)
		// Where it fails the memory is used a little longer.
		const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		if unix.SyncFileRange(int(f.Fd()), from, behindSize, all) == nil {
			_ = unix.Fadvise(int(f.Fd()), from, behindSize, unix.FADV_DONTNEED)
		}
	}()
}

// wait waits for what is on its way to the disk, after which the file may be closed.
func (b *behind) wait() {
	if b.busy != nil {
		<-b.busy
	}
}
