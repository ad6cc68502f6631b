package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/kiln-build/kiln/cache/internal/guard"
	"github.com/kiln-build/kiln/cache/internal/tmpfile"
	"golang.org/x/sys/unix"
)

// Descriptor says of a blob what an OCI descriptor says.
type Descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      Digest            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// MarshalText writes the digest as OCI does.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (d *Digest) UnmarshalText(b []byte) (err error) {
	*d, err = Parse(string(b))
	return err
}

// Store is a folder of blobs, blobs/sha256/<hex>, and of recipes: blobs that are
// kept as a list of chunks (compressed pieces of layers) rather than as a file.
// Both are whole and verified once they have their name. It is safe for
// concurrent use; what is found or put under an open lease is kept from Sweep
// until the lease ends (package guard holds the rules).
type Store struct {
	dir   string
	guard *guard.Guard

	blobs, recipes, partial *os.File
	chunks                  *os.File
	chunkDirs               [256]sync.Once

	mu       sync.Mutex
	ingested map[Digest]chan struct{} // closed when the Writer of that digest is
}

// Options are the settings of a store; the zero value works.
type Options struct {
	// Guard is shared with the other stores of a state folder; nil is one of its own.
	Guard *guard.Guard
}

// OpenStore opens the store whose folders blobs, recipes, chunks and partial lie
// in dir, making them if need be.
func OpenStore(dir string, o Options) (*Store, error) {
	if o.Guard == nil {
		o.Guard = new(guard.Guard)
	}
	s := &Store{dir: dir, guard: o.Guard, ingested: map[Digest]chan struct{}{}}
	for _, d := range []struct {
		name string
		f    **os.File
	}{
		{"blobs/sha256", &s.blobs}, {"recipes", &s.recipes}, {"chunks", &s.chunks}, {"partial", &s.partial},
	} {
		f, err := openFolder(filepath.Join(dir, d.name))
		if err != nil {
			_ = s.Close()
			return nil, fmt.Errorf("opening the blobs: %w", err)
		}
		*d.f = f
	}
	return s, nil
}

func openFolder(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, err
		}
		f, err = os.Open(path)
	}
	return f, err
}

// Close lets the folders go.
func (s *Store) Close() error {
	for _, f := range []*os.File{s.blobs, s.recipes, s.chunks, s.partial} {
		if f != nil {
			_ = f.Close()
		}
	}
	return nil
}

// Path gives where a blob's file lies; a blob that is kept as a recipe has none.
func (s *Store) Path(d Digest) string {
	return filepath.Join(s.dir, "blobs/sha256", hex.EncodeToString(d[:]))
}

// Has reports whether the blob is here, as a file or as a recipe whose chunks are here.
func (s *Store) Has(d Digest) bool {
	if s.hasFile(d) {
		return true
	}
	_, err := s.recipe(d)
	return err == nil
}

func (s *Store) hasFile(d Digest) bool {
	defer s.guard.Use((*[32]byte)(&d)).RUnlock()
	var st unix.Stat_t
	return unix.Fstatat(int(s.blobs.Fd()), hex.EncodeToString(d[:]), &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// Open reads a blob. A blob that is not here is an error that wraps fs.ErrNotExist.
func (s *Store) Open(d Digest) (io.ReadSeekCloser, int64, error) {
	f, size, err := s.openFile(d)
	if err == nil {
		return f, size, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, err
	}
	r, err := s.recipe(d)
	if err != nil {
		return nil, 0, fmt.Errorf("blob %s: %w", d, err)
	}
	return &recipeReader{store: s, recipe: r}, r.size, nil
}

func (s *Store) openFile(d Digest) (*os.File, int64, error) {
	defer s.guard.Use((*[32]byte)(&d)).RUnlock()
	f, err := openat(s.blobs, hex.EncodeToString(d[:]), unix.O_RDONLY)
	if err != nil {
		return nil, 0, fmt.Errorf("blob %s: %w", d, err)
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, 0, fmt.Errorf("blob %s: %w", d, err)
	}
	return f, st.Size(), nil
}

// openat opens a file of one of the store's folders, never through a symbolic link.
func openat(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, tmpfile.Explain(&os.PathError{Op: "open", Path: name, Err: err})
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Put stores what r gives until its end; a size or digest that differs is an
// error, and nothing is stored. Several at once for one digest are fine. Where
// the blob is here r is not read.
func (s *Store) Put(ctx context.Context, d Digest, size int64, r io.Reader) error {
	if s.hasFile(d) {
		return nil
	}
	if err := s.put(ctx, d, size, r); err != nil {
		return fmt.Errorf("storing blob %s: %w", d, tmpfile.Explain(err))
	}
	return nil
}

func (s *Store) put(ctx context.Context, d Digest, size int64, r io.Reader) error {
	f, err := tmpfile.Create(int(s.blobs.Fd()))
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	// One byte more than expected shows a blob that is too long.
	n, err := io.Copy(io.MultiWriter(f.File, h), &ctxReader{ctx, io.LimitReader(r, size+1)})
	if err != nil {
		return err
	}
	if err := check(d, size, n, h.Sum(nil)); err != nil {
		return err
	}
	s.guard.Grow(size)
	return s.publish(f, d)
}

// publish gives a verified file its name.
func (s *Store) publish(f *tmpfile.File, d Digest) error {
	s.guard.SetDirty()
	if err := f.Link(int(s.blobs.Fd()), hex.EncodeToString(d[:])); err != nil && !tmpfile.IsExist(err) {
		return err
	}
	return nil
}

// MismatchError says that bytes are not those of the blob that they were to be.
type MismatchError struct {
	Want, Got         Digest
	WantSize, GotSize int64 // GotSize is a lower bound where it is the greater one
}

func (e *MismatchError) Error() string {
	if e.WantSize != e.GotSize {
		return fmt.Sprintf("it has %d bytes where %d were expected", e.GotSize, e.WantSize)
	}
	return fmt.Sprintf("its digest is %s", e.Got)
}

func check(d Digest, size, n int64, sum []byte) error {
	var got Digest
	copy(got[:], sum)
	if n != size || got != d {
		return &MismatchError{Want: d, Got: got, WantSize: size, GotSize: n}
	}
	return nil
}

// ctxReader fails once its context is done.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *ctxReader) Read(b []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(b)
}
