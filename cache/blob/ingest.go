package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math"
	"os"

	"github.com/kiln-build/kiln/cache/internal/tmpfile"
	"golang.org/x/sys/unix"
)

// Writer takes a blob's bytes in their order. What was written before Close
// without Commit is kept (in the folder partial), and the next Writer of the
// blob goes on from there. It is used by one goroutine at a time.
type Writer struct {
	store  *Store
	digest Digest
	size   int64

	f    *os.File // nil once committed or closed
	hash hash.Hash
	off  int64

	behind behind
}

// Ingest begins, or goes on with, the blob of that digest and size. It waits
// while another Writer has the digest. A blob that is here is an error that
// wraps fs.ErrExist.
func (s *Store) Ingest(ctx context.Context, d Digest, size int64) (*Writer, error) {
	if err := s.claim(ctx, d); err != nil {
		return nil, fmt.Errorf("waiting for the download of blob %s: %w", d, err)
	}
	w, err := s.resume(ctx, d, size)
	if err != nil {
		s.unclaim(d)
		return nil, fmt.Errorf("storing blob %s: %w", d, err)
	}
	return w, nil
}

func (s *Store) claim(ctx context.Context, d Digest) error {
	for {
		s.mu.Lock()
		other, taken := s.ingested[d]
		if !taken {
			s.ingested[d] = make(chan struct{})
		}
		s.mu.Unlock()
		if !taken {
			return nil
		}
		select {
		case <-other:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *Store) unclaim(d Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.ingested[d])
	delete(s.ingested, d)
}

func (s *Store) resume(ctx context.Context, d Digest, size int64) (*Writer, error) {
	if s.Has(d) {
		return nil, fs.ErrExist
	}
	f, err := openat(s.partial, hex.EncodeToString(d[:]), unix.O_RDWR|unix.O_CREAT)
	if err != nil {
		return nil, err
	}
	w := &Writer{store: s, digest: d, size: size, f: f, hash: sha256.New()}
	n, err := io.Copy(w.hash, &ctxReader{ctx, io.LimitReader(f, size+1)})
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	w.off = n
	if n > 0 {
		w.behind.taken = math.MaxInt64 // it is read from its beginning as soon as it is whole
	}
	if n > size {
		if err := w.Reset(); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
	return w, nil
}

// Offset gives how many bytes there are: from where to go on.
func (w *Writer) Offset() int64 { return w.off }

// Reset begins anew, for a server that cannot go on in the middle.
func (w *Writer) Reset() error {
	w.behind.wait()
	w.behind = behind{}
	if err := w.f.Truncate(0); err != nil {
		return err
	}
	if _, err := w.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	w.hash.Reset()
	w.off = 0
	return nil
}

// Write adds bytes. More than the blob's size is a *MismatchError.
func (w *Writer) Write(b []byte) (int, error) {
	if w.f == nil {
		return 0, fs.ErrClosed
	}
	if w.off+int64(len(b)) > w.size {
		return 0, fmt.Errorf("storing blob %s: %w", w.digest,
			&MismatchError{Want: w.digest, WantSize: w.size, GotSize: w.off + int64(len(b))})
	}
	n, err := w.f.Write(b)
	w.hash.Write(b[:n])
	w.off += int64(n)
	w.behind.wrote(w.f, w.size, w.off)
	if err != nil {
		return n, fmt.Errorf("storing blob %s: %w", w.digest, tmpfile.Explain(err))
	}
	return n, nil
}

// Commit verifies what was written, puts it under its name, and closes w. Bytes
// that are not the blob's are dropped: a later Writer begins anew.
func (w *Writer) Commit() error {
	if w.f == nil {
		return fs.ErrClosed
	}
	defer w.Close()
	name := hex.EncodeToString(w.digest[:])
	partial, blobs := int(w.store.partial.Fd()), int(w.store.blobs.Fd())
	if err := check(w.digest, w.size, w.off, w.hash.Sum(nil)); err != nil {
		if w.off == w.size {
			_ = unix.Unlinkat(partial, name, 0)
		}
		return fmt.Errorf("storing blob %s: %w", w.digest, err)
	}
	defer w.store.guard.Use((*[32]byte)(&w.digest)).RUnlock()
	w.store.guard.SetDirty()
	w.store.guard.Grow(w.size)
	if err := unix.Renameat(partial, name, blobs, name); err != nil {
		return fmt.Errorf("storing blob %s: %w", w.digest, tmpfile.Explain(err))
	}
	return nil
}

// Close ends w; after Commit it does nothing.
func (w *Writer) Close() error {
	if w.f == nil {
		return nil
	}
	w.behind.wait()
	err := w.f.Close()
	w.f = nil
	w.store.unclaim(w.digest)
	return err
}

var _ io.WriteCloser = (*Writer)(nil)
