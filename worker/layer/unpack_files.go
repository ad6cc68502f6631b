package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/pool"
	"github.com/kiln-build/kiln/cache/tree"
)

const (
	// smallFile bounds the files that are held in memory until a worker has written
	// them; larger ones are written while they stream by.
	smallFile = 64 << 10
	// inFlight is how many small files wait, at most: 4 MiB of them.
	inFlight = 64
	// copySize is how much of a large file is read at a time.
	copySize = 256 << 10
	// maxReserve is what unpacking leaves free, and a fiftieth of small disks. A disk
	// without a byte left breaks more than the build: the state folder could not
	// even be pruned.
	maxReserve = 256 << 20
	// checkDisk is how many bytes are written between two looks at the free space.
	checkDisk = 64 << 20
)

// fileWriter puts a stream's files into the pool. write and finish are for
// one goroutine, work for any number.
type fileWriter struct {
	ctx     context.Context
	cache   *cache.Cache
	pool    *pool.Pool
	maxSize int64
	size    int64 // of the files so far
	checked int64 // size when the disk was last looked at

	queue chan smallContent
	buf   []byte
}

// smallContent is a small file on its way to a worker.
type smallContent struct {
	entry *tree.Entry
	buf   *[smallFile]byte
}

var smallBuffers = sync.Pool{New: func() any { return new([smallFile]byte) }}

func newFileWriter(ctx context.Context, c *cache.Cache, maxSize int64) (*fileWriter, error) {
	w := &fileWriter{ctx: ctx, cache: c, pool: c.Pool(), maxSize: maxSize, queue: make(chan smallContent, inFlight)}
	return w, w.diskSpace(0)
}

// finish says that no more files come.
func (w *fileWriter) finish() { close(w.queue) }

// work puts small files into the pool until finish.
func (w *fileWriter) work() error {
	for s := range w.queue {
		err := w.putSmall(s)
		smallBuffers.Put(s.buf)
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *fileWriter) putSmall(s smallContent) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	// The entry is in the tree, and may be looked at for hard links to it; its Content is
	// what nobody asks for before the end.
	e := *s.entry
	err := w.pool.PutBytes(&e, s.buf[:e.Size])
	s.entry.Content = e.Content
	return err
}

// write takes the content of e, whose digest it sets, now or before the workers
// have ended.
func (w *fileWriter) write(ctx context.Context, e *tree.Entry, r io.Reader) error {
	if err := w.admit(e.Size); err != nil {
		return err
	}
	if e.Size > smallFile {
		return w.writeLarge(ctx, e, r)
	}
	buf := smallBuffers.Get().(*[smallFile]byte)
	if _, err := io.ReadFull(r, buf[:e.Size]); err != nil {
		return unexpected(err)
	}
	select {
	case w.queue <- smallContent{e, buf}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// admit counts a file's size against the bounds, before any of it is read: a
// sparse file may announce exabytes.
func (w *fileWriter) admit(size int64) error {
	if w.maxSize > 0 && size > w.maxSize-w.size {
		return &LimitError{"bytes of files", w.maxSize}
	}
	w.size += size
	if size > smallFile || w.size-w.checked > checkDisk {
		w.checked = w.size
		return w.diskSpace(size)
	}
	return nil
}

// diskSpace gives an error where size bytes would leave less than the reserve.
func (w *fileWriter) diskSpace(size int64) error {
	var st unix.Statfs_t
	dir := w.cache.Path()
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("asking for the free space of %s: %w", dir, err)
	}
	inBytes := func(blocks uint64) int64 {
		return int64(min(blocks, 1<<62/uint64(st.Bsize)) * uint64(st.Bsize))
	}
	free, reserve := inBytes(st.Bavail), min(maxReserve, inBytes(st.Blocks)/50)
	if size > free-reserve {
		return fmt.Errorf("%w: %d MB are to be written where %s has %d MB free, of which %d MB are kept; kiln prune makes room",
			unix.ENOSPC, size>>20, dir, free>>20, reserve>>20)
	}
	return nil
}

// writeLarge writes a file while it is hashed, and gives it to the pool once its
// digest, and so its name there, is known.
func (w *fileWriter) writeLarge(ctx context.Context, e *tree.Entry, r io.Reader) error {
	f, err := w.pool.Create()
	if err != nil {
		return err
	}
	defer f.Close()
	if e.Content, err = w.copyHashed(ctx, f.File.File, e.Size, r); err != nil {
		return err
	}
	return f.Commit(*e)
}

// copyHashed copies size bytes, leaving holes for blocks of zeros.
func (w *fileWriter) copyHashed(ctx context.Context, f *os.File, size int64, r io.Reader) (d blob.Digest, err error) {
	if w.buf == nil {
		w.buf = make([]byte, copySize)
	}
	h := sha256.New()
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return d, context.Cause(ctx)
		}
		b := w.buf[:min(copySize, size-off)]
		if _, err := io.ReadFull(r, b); err != nil {
			return d, unexpected(err)
		}
		h.Write(b)
		if !isZero(b) {
			if _, err := f.WriteAt(b, off); err != nil {
				return d, fmt.Errorf("writing a file of the pool: %w", err)
			}
		}
		off += int64(len(b))
	}
	if err := f.Truncate(size); err != nil {
		return d, fmt.Errorf("writing a file of the pool: %w", err)
	}
	return blob.Digest(h.Sum(nil)), nil
}

var zeros [4096]byte

func isZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// unexpected turns the end of the stream in the middle of a file into its error.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
