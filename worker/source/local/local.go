// Package local reads folders of the user's in place.
//
// A scan walks a folder, as far as its filter lets it, and makes a tree of it,
// without copying anything. What makes a second scan cheap is the stat cache: for
// each directory, the digest, link target and xattrs of every name in it, good as
// long as the name's inode, size, mtime and ctime are what they were. A time so
// recent that a later write could bear the same one is not trusted (git calls
// such a file racily clean).
//
// Owners are not read: every file of a local folder belongs to 0:0, as with
// BuildKit. Sockets are left out.
//
// Reading a file of the folder later, for a step that needs it, goes through
// Folder, which never leaves the folder and follows no link. Whether the file is
// still the one that was scanned, its digest tells.
package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/worker/internal/dirfd"
	"golang.org/x/sys/unix"
)

// Filter narrows a folder, in the pattern language of .dockerignore. Follow
// lists paths to include with the targets of all symbolic links on their way.
type Filter struct {
	Include, Exclude, Follow []string
}

// Bucket remembers bytes under keys; losing them costs time only.
type Bucket interface {
	Get(key []byte) (value []byte, ok bool)
	Put(key, value []byte) error
}

// Scanner makes trees of folders. It is safe for concurrent use.
type Scanner struct {
	Nodes tree.Nodes
	// Stats is the stat cache; nil hashes every file at every scan.
	Stats Bucket
	// Clock tells the time that files' times are compared with; nil is time.Now.
	Clock func() time.Time
	// Parallel is how many directories or files are read at once; 0 is twice the
	// number of processors.
	Parallel int
}

// Scan makes a tree of what f lets through of the folder dir. The tree's root is
// a Dir of mode 0755 whatever dir's own mode is, as a snapshot's root is with BuildKit.
func (s *Scanner) Scan(ctx context.Context, dir string, f Filter) (tree.Entry, error) {
	root, err := OpenFolder(dir)
	if err != nil {
		return tree.Entry{}, err
	}
	defer root.Close()
	m, err := newMatchers(root, f)
	if err != nil {
		return tree.Entry{}, err
	}
	st, err := root.stat()
	if err != nil {
		return tree.Entry{}, err
	}
	parallel := s.Parallel
	if parallel == 0 {
		parallel = 2 * runtime.GOMAXPROCS(0)
	}
	clock := s.Clock
	if clock == nil {
		clock = time.Now
	}
	sc := &scan{
		ctx: ctx, nodes: s.Nodes, stats: s.Stats, now: clock().UnixNano(),
		matchers: m, slots: make(chan struct{}, parallel),
	}
	top, err := sc.dir(root.fd, st, "", match{}, true)
	if err != nil {
		return tree.Entry{}, fmt.Errorf("reading the folder %s: %w", dir, err)
	}
	return tree.Entry{
		Kind: tree.Dir, Mode: 0o755, MTime: st.Mtim.Nano(), Children: top.ref,
	}, nil
}

// Folder is an open folder of the user's. It is safe for concurrent use.
type Folder struct {
	fd   int
	name string
	once sync.Once
}

// OpenFolder opens the folder at dir, which may itself be reached through links.
func OpenFolder(dir string) (*Folder, error) {
	fd, err := dirfd.Open(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &Folder{fd: fd, name: dir}, nil
}

// Close lets the folder go; it may be called more than once.
func (f *Folder) Close() { f.once.Do(func() { unix.Close(f.fd) }) }

func (f *Folder) stat() (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return st, &fs.PathError{Op: "stat", Path: f.name, Err: err}
	}
	return st, nil
}

// Open opens the regular file at rel, a clean relative path, for reading. A
// symbolic link anywhere on the way is an error: a tree names files, and a name
// that has become a link since the scan is not the file that was scanned.
func (f *Folder) Open(rel string) (*os.File, error) {
	fd, err := f.openBeneath(rel, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path.Join(f.name, rel), Err: err}
	}
	file := os.NewFile(uintptr(fd), path.Join(f.name, rel))
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		file.Close()
		return nil, &fs.PathError{Op: "open", Path: path.Join(f.name, rel), Err: errors.New("not a regular file any more")}
	}
	return file, nil
}

func (f *Folder) openBeneath(rel string, flags int) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	return dirfd.Openat2(f.fd, rel, &how)
}
