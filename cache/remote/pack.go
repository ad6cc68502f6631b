package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// minPiece keeps pieces worth a request. maxPiece bounds the memory that they
	// take; longer files are cut at multiples of it.
	minPiece = 4 << 20
	maxPiece = 16 << 20
)

// listed is a file of a cache mount. Sockets, devices and extended attributes are
// not saved.
type listed struct {
	Path string `json:"path"` // "." is the mount's own folder
	// Kind is "file", "dir", "symlink" or "link", which is another name of Target.
	Kind   string `json:"kind"`
	Mode   uint32 `json:"mode,omitempty"` // permissions, and the bits above them
	UID    int    `json:"uid,omitempty"`
	GID    int    `json:"gid,omitempty"`
	Time   int64  `json:"time,omitempty"` // nanoseconds since 1970
	Size   int64  `json:"size,omitempty"`
	Target string `json:"target,omitempty"`
}

// inode names a file that may have several names.
type inode struct{ dev, ino uint64 }

// packer lists a folder and hands out its contents in pieces.
type packer struct {
	ctx    context.Context // of the one call that it is for
	root   *os.Root
	emit   func([]byte) error
	list   bytes.Buffer
	json   *json.Encoder
	inodes map[inode]string
	buf    []byte
	size   int64
}

func idOf(data []byte) id { return sha256.Sum256(data) }

// pack lists the files of a folder and gives their contents to emit, which may
// keep what it is given.
func pack(ctx context.Context, dir string, emit func(piece []byte) error) (list []byte, size int64, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, 0, err
	}
	defer root.Close()
	p := &packer{ctx: ctx, root: root, emit: emit, inodes: map[inode]string{}}
	p.json = json.NewEncoder(&p.list)
	if err := p.walk("."); err != nil {
		return nil, 0, err
	}
	return p.list.Bytes(), p.size, p.cut()
}

// walk lists one name and what is below it. A name that goes away meanwhile was
// never there.
func (p *packer) walk(name string) error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	info, err := p.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) && name != "." {
		return nil
	}
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("the system says nothing of %s", name)
	}
	e := listed{
		Path: name, Mode: st.Mode & 0o7777, UID: int(st.Uid), GID: int(st.Gid), Time: info.ModTime().UnixNano(),
	}
	switch info.Mode().Type() {
	case fs.ModeDir:
		e.Kind = "dir"
		if err := p.json.Encode(e); err != nil {
			return err
		}
		return p.folder(name)
	case fs.ModeSymlink:
		e.Kind = "symlink"
		if e.Target, err = p.root.Readlink(name); err != nil {
			return gone(err)
		}
		return p.json.Encode(e)
	case 0:
		if first, ok := p.inodes[inode{uint64(st.Dev), st.Ino}]; ok && st.Nlink > 1 {
			return p.json.Encode(listed{Path: name, Kind: "link", Target: first})
		}
		p.inodes[inode{uint64(st.Dev), st.Ino}] = name
		e.Kind = "file"
		return p.file(e)
	}
	return nil
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (p *packer) folder(name string) error {
	f, err := p.root.Open(name)
	if err != nil {
		return gone(err)
	}
	names, err := f.Readdirnames(-1)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		if err := p.walk(path.Join(name, n)); err != nil {
			return err
		}
	}
	return nil
}

// file lists a regular file and appends its contents.
func (p *packer) file(e listed) error {
	f, err := p.root.OpenFile(e.Path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return gone(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return err
	}
	e.Size = st.Size()
	if e.Size > maxPiece {
		// A long file has pieces of its own, so that it moves none of its neighbours'.
		if err := p.cut(); err != nil {
			return err
		}
	}
	for left := e.Size; left > 0; {
		n := int(min(left, maxPiece))
		at := len(p.buf)
		p.buf = slices.Grow(p.buf, n)[:at+n]
		if _, err := io.ReadFull(f, p.buf[at:]); err != nil {
			return fmt.Errorf("%s became shorter while it was read: %w", e.Path, err)
		}
		left -= int64(n)
		if e.Size > maxPiece {
			if err := p.cut(); err != nil {
				return err
			}
		}
	}
	p.size += e.Size
	if err := p.json.Encode(e); err != nil {
		return err
	}
	if len(p.buf) >= minPiece && (isCut(e) || len(p.buf) >= 2*minPiece) {
		return p.cut()
	}
	return nil
}

// isCut says whether a piece that is long enough ends after a file: one in eight,
// by its name and size, so that a file which came or went moves few cuts.
func isCut(e listed) bool {
	sum := sha256.Sum256(binary.LittleEndian.AppendUint64([]byte(e.Path), uint64(e.Size)))
	return sum[0]&7 == 0
}

// cut ends a piece.
func (p *packer) cut() error {
	if len(p.buf) == 0 {
		return nil
	}
	done := p.buf
	p.buf = nil
	return p.emit(done)
}

// unpack makes the files of a listing in an empty folder, their contents from r.
func unpack(ctx context.Context, root *os.Root, list []byte, r io.Reader) error {
	var folders []listed
	d := json.NewDecoder(bytes.NewReader(list))
	for {
		var e listed
		if err := d.Decode(&e); err == io.EOF {
			break
		} else if err != nil {
			return formatf("the listing of its files cannot be read: %v", err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := create(root, e, r); err != nil {
			return fmt.Errorf("%.200q: %w", e.Path, err)
		}
		if e.Kind == "dir" {
			folders = append(folders, e)
		}
	}
	// What was put into a folder changed its time.
	for _, e := range slices.Backward(folders) {
		if err := dress(root, e); err != nil {
			return fmt.Errorf("%.200q: %w", e.Path, err)
		}
	}
	return nil
}

// create makes one file. The root lets none be made outside of it.
func create(root *os.Root, e listed, r io.Reader) error {
	if e.Size < 0 || e.Size > maxBlob || e.Mode > 0o7777 {
		return formatf("it makes no sense")
	}
	switch e.Kind {
	case "dir":
		if path.Clean(e.Path) == "." {
			return nil
		}
		return root.Mkdir(e.Path, 0o700)
	case "symlink":
		if err := root.Symlink(e.Target, e.Path); err != nil {
			return err
		}
		return root.Lchown(e.Path, e.UID, e.GID)
	case "link":
		return root.Link(e.Target, e.Path)
	case "file":
		f, err := root.OpenFile(e.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.CopyN(f, r, e.Size)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		return dress(root, e)
	}
	return formatf("it is of an unknown kind, %.20q", e.Kind)
}

// dress gives a file or folder its owner, mode and time. They are set through the
// file itself: its name could lead through a link by now.
func dress(root *os.Root, e listed) error {
	f, err := root.OpenFile(e.Path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	fd := int(f.Fd())
	ts := unix.NsecToTimespec(e.Time)
	err = errors.Join(
		unix.Fchown(fd, e.UID, e.GID), // before the mode: it takes setuid away
		unix.Fchmod(fd, e.Mode),
		unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), []unix.Timespec{ts, ts}, 0),
	)
	return errors.Join(err, f.Close())
}
