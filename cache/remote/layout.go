package remote

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/cache/blob"
)

// Layout is a cache in a folder of this machine, which is an OCI image layout.
type Layout struct {
	dir    string
	tag    string
	digest blob.Digest
}

var _ Target = (*Layout)(nil)

// NewLayout gives the cache called tag in a folder; empty is "latest". A digest
// that is not zero is read in the tag's place.
func NewLayout(dir, tag string, digest blob.Digest) *Layout {
	if tag == "" {
		tag = "latest"
	}
	return &Layout{dir: dir, tag: tag, digest: digest}
}

// refName is the annotation by which a layout's index.json names things.
const refName = "org.opencontainers.image.ref.name"

// named is a descriptor in index.json. Fields that are not known here are kept.
type named map[string]json.RawMessage

func (n named) name() string {
	var a map[string]string
	if json.Unmarshal(n["annotations"], &a) != nil {
		return ""
	}
	return a[refName]
}

// readIndex reads index.json.
func readIndex(root *os.Root) (list []named, err error) {
	f, err := root.Open("index.json")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxIndex))
	if err != nil {
		return nil, err
	}
	var index struct {
		Manifests []named `json:"manifests"`
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, formatf("its index.json cannot be read: %v", err)
	}
	return index.Manifests, nil
}

// Manifest makes a Layout a Store.
func (l *Layout) Manifest(_ context.Context, d blob.Digest) ([]byte, error) {
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if d.IsZero() {
		d = l.digest
	}
	if d.IsZero() {
		if d, err = l.lookUp(root); err != nil {
			return nil, err
		}
	}
	return readManifest(root, d)
}

func readManifest(root *os.Root, d blob.Digest) ([]byte, error) {
	f, err := root.OpenFile(blobPath(d), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadManifest(f, d)
}

func (l *Layout) lookUp(root *os.Root) (blob.Digest, error) {
	list, err := readIndex(root)
	if err != nil {
		return blob.Digest{}, err
	}
	for _, n := range list {
		if n.name() != l.tag {
			continue
		}
		var d blob.Digest
		if err := json.Unmarshal(n["digest"], &d); err != nil {
			return d, formatf("its index.json cannot be read: %v", err)
		}
		return d, nil
	}
	return blob.Digest{}, fmt.Errorf("the layout %s has nothing called %s: %w", l.dir, l.tag, fs.ErrNotExist)
}

// Blob makes a Layout a Store.
func (l *Layout) Blob(_ context.Context, d blob.Descriptor, offset int64) (io.ReadCloser, error) {
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(blobPath(d.Digest), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() != d.Size {
		return nil, errors.Join(formatf("blob %s of the layout is damaged", d.Digest), err, f.Close())
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Put makes a Layout a Target.
func (l *Layout) Put(ctx context.Context, d blob.Descriptor, _ []string, open func(context.Context) (io.ReadCloser, error)) error {
	root, err := l.open()
	if err != nil {
		return err
	}
	defer root.Close()
	path := blobPath(d.Digest)
	if st, err := root.Lstat(path); err == nil && st.Mode().IsRegular() && st.Size() == d.Size {
		return nil
	}
	r, err := open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	return replace(root, path, func(f *os.File) error {
		h := sha256.New()
		n, err := io.Copy(io.MultiWriter(f, h), &contextReader{ctx, io.LimitReader(r, d.Size+1)})
		if err == nil && (n != d.Size || blob.Digest(h.Sum(nil)) != d.Digest) {
			err = errors.New("the bytes are not those of the blob")
		}
		return err
	})
}

// contextReader fails once its context is done.
type contextReader struct {
	ctx context.Context // of the one copy that it is for
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// lockFile is held while index.json is changed. It stays: a lock file that is
// removed lets two in.
const lockFile = ".kiln.lock"

// lock lets one at a time change index.json.
func lock(ctx context.Context, root *os.Root) (unlock func() error, err error) {
	f, err := root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o666)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f.Close, nil
		case err == unix.ENOTSUP || err == unix.ENOSYS || err == unix.ENOLCK:
			return f.Close, nil // a file system without locks: then it is as good as it gets
		case err != unix.EWOULDBLOCK && err != unix.EINTR:
			return nil, errors.Join(fmt.Errorf("locking the layout: %w", err), f.Close())
		}
		// Whoever has it writes two small files.
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
}

// Commit makes a Layout a Target.
func (l *Layout) Commit(ctx context.Context, d blob.Descriptor, manifest []byte, old blob.Digest) (sure bool, err error) {
	if err := l.Put(ctx, d, nil, opener(manifest)); err != nil {
		return false, err
	}
	root, err := l.open()
	if err != nil {
		return false, err
	}
	defer root.Close()
	unlock, err := lock(ctx, root)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if now, err := l.lookUp(root); err == nil && now != old {
		// What cannot be read is nothing that could be kept.
		if _, err := readManifest(root, now); err == nil {
			return false, fmt.Errorf("the layout %s: %w", l.dir, ErrChanged)
		}
	}
	sweep(root)
	return true, l.name(root, d)
}

// name writes index.json.
func (l *Layout) name(root *os.Root, d blob.Descriptor) error {
	list, err := readIndex(root)
	var format *FormatError
	if err != nil && !isMissing(err) && !errors.As(err, &format) {
		return err
	}
	list = slices.DeleteFunc(list, func(n named) bool { return n.name() == l.tag })
	entry := struct {
		blob.Descriptor
		ArtifactType string `json:"artifactType"`
	}{d, ArtifactType}
	entry.Annotations = map[string]string{refName: l.tag}
	index := struct {
		SchemaVersion int    `json:"schemaVersion"`
		MediaType     string `json:"mediaType"`
		Manifests     []any  `json:"manifests"`
	}{2, "application/vnd.oci.image.index.v1+json", nil}
	for _, n := range list {
		index.Manifests = append(index.Manifests, n)
	}
	index.Manifests = append(index.Manifests, entry)
	data, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	write := func(data []byte) func(*os.File) error {
		return func(f *os.File) error { _, err := f.Write(data); return err }
	}
	if err := replace(root, "oci-layout", write([]byte(`{"imageLayoutVersion":"1.0.0"}`))); err != nil {
		return err
	}
	return replace(root, "index.json", write(data))
}

// open opens the folder, making it if need be.
func (l *Layout) open() (*os.Root, error) {
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		return nil, err
	}
	if err := root.MkdirAll("blobs/sha256", 0o755); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

func blobPath(d blob.Digest) string { return "blobs/sha256/" + hex.EncodeToString(d[:]) }

// partSuffix ends the names of files that are being written.
const partSuffix = ".part"

// replace writes a file beside its place and gives it its name when it is whole.
func replace(root *os.Root, path string, write func(*os.File) error) error {
	// Two exports may write the same blob: each has a file of its own. A number of the
	// process would not tell them apart: in containers it is the same each time.
	temp := path + "." + rand.Text() + partSuffix
	f, err := root.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Close())
	if err == nil {
		err = root.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", path, err), root.Remove(temp))
	}
	return nil
}

// abandoned is the age from which on a file that is being written is taken for that of an
// export which was killed: one that writes changes its time.
const abandoned = 24 * time.Hour

// sweep removes what exports have left behind. It does what it can: what stays takes
// room, and no name that anybody wants.
func sweep(root *os.Root) {
	dir, err := root.Open("blobs/sha256")
	if err != nil {
		return
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return
	}
	for _, name := range names {
		of, _, ok := strings.Cut(name, ".")
		if !ok || len(of) != hex.EncodedLen(sha256.Size) || !strings.HasSuffix(name, partSuffix) {
			continue
		}
		path := "blobs/sha256/" + name
		if info, err := root.Lstat(path); err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > abandoned {
			_ = root.Remove(path)
		}
	}
}
