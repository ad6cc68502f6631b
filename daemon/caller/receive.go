package caller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/worker"
)

// maxEntries bounds what one folder may hold, so that a client that never stops
// listing does not fill the memory.
const maxEntries = 20_000_000

// receiver takes a folder from a client into a mirror. The client lists what the
// filter lets through, numbering the entries; the receiver asks for the contents
// of those that differ from the mirror's by what the list says of them (kind,
// mode, size, time, link target, attributes); the contents come while the list
// goes on.
type receiver struct {
	stream filesync.FileSync_DiffCopyClient
	root   *os.Root
	known  map[string]*types.Stat // of the mirror, what the filter lets through and the list has not named yet

	next    uint32 // number of the next entry
	last    string // path of the entry before that
	dir     string // the folder that the list is in
	dirs    []*types.Stat
	touched map[string]bool // folders whose times are to be set again
	removed map[string]bool // what made place for something else, with all in it
	links   []*types.Stat
	pending map[uint32]*incoming
	listed  bool // the whole list is here
	anew    bool // contents are asked for whatever the list says
	only    *metadataOnly
	room    room
	came    func(int)
	asker   asker
}

// receive brings a mirror up to date. came is told of the bytes of every packet.
func receive(ctx context.Context, stream filesync.FileSync_DiffCopyClient, root *os.Root, f worker.Filter, came func(int)) error {
	shown := f
	if f.MetadataOnly {
		shown = worker.Filter{} // there is nothing in the mirror but this filter's
	}
	known, err := list(ctx, root, shown)
	if err != nil {
		return err
	}
	free, err := roomAt(root.Name())
	if err != nil {
		return err
	}
	r := &receiver{
		stream: stream, root: root, known: known, room: free, came: came,
		dir: ".", anew: f.Differ == worker.DifferNone, touched: make(map[string]bool), removed: make(map[string]bool), pending: make(map[uint32]*incoming),
	}
	if f.MetadataOnly {
		delete(known, metadataName)
		if r.only, err = newMetadataOnly(root, f.Exceptions); err != nil {
			return err
		}
		defer r.only.close()
	}
	r.asker.wake = sync.NewCond(&r.asker.mu)
	var group sync.WaitGroup
	group.Go(func() { r.asker.run(stream) })
	err = r.run()
	r.asker.stop()
	group.Wait()
	for _, in := range r.pending {
		in.abort()
	}
	if err != nil {
		return err
	}
	return r.finish()
}

// list gives what the filter lets through of a mirror, by path.
func list(ctx context.Context, root *os.Root, f worker.Filter) (map[string]*types.Stat, error) {
	tree, err := fsutil.NewFS(root.Name())
	if err != nil {
		return nil, err
	}
	tree, err = fsutil.NewFilterFS(tree, &fsutil.FilterOpt{IncludePatterns: f.Include, ExcludePatterns: f.Exclude, FollowPaths: f.Follow})
	if err != nil {
		return nil, err
	}
	known := make(map[string]*types.Stat)
	err = tree.Walk(ctx, "", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*types.Stat)
		if !ok {
			return fmt.Errorf("listing %s: no status", p)
		}
		known[filepath.ToSlash(p)] = st
		return nil
	})
	return known, err
}

// run takes packets until list and contents are complete.
func (r *receiver) run() error {
	for {
		var p types.Packet
		if err := r.stream.RecvMsg(&p); err != nil {
			return err
		}
		r.came(proto.Size(&p))
		var err error
		switch p.Type {
		case types.PACKET_ERR:
			return fmt.Errorf("the client: %s", p.Data)
		case types.PACKET_FIN:
			if !r.listed || len(r.pending) > 0 {
				return errors.New("the client ended before it had sent everything")
			}
			return nil
		case types.PACKET_STAT:
			err = r.entry(p.Stat)
		case types.PACKET_DATA:
			err = r.data(p.ID, p.Data)
		default:
			err = fmt.Errorf("a packet of the unknown type %d", p.Type)
		}
		if err != nil {
			return err
		}
		if r.listed && len(r.pending) == 0 {
			r.asker.finish()
		}
	}
}

// entry takes an entry of the list; nil ends it.
func (r *receiver) entry(st *types.Stat) error {
	if r.listed {
		return errors.New("the client listed more after the end of its list")
	}
	if st == nil {
		r.listed = true
		return nil
	}
	id := r.next
	if r.next++; r.next > maxEntries {
		return fmt.Errorf("the folder holds more than %d entries", maxEntries)
	}
	if len(st.Path) >= unix.PathMax {
		return fmt.Errorf("the client listed %.64q…, which has %d bytes, and no folder can hold", st.Path, len(st.Path))
	}
	if !filepath.IsLocal(st.Path) || path.Clean(st.Path) != st.Path || st.Path == "." || strings.ContainsRune(st.Path, 0) || st.Size < 0 {
		return fmt.Errorf("the client listed %q, which no folder can hold", st.Path)
	}
	// BuildKit asks for this order of its clients too. It leaves no name twice: what was
	// a folder at first could be something else when finish comes to it.
	if fsutil.ComparePath(r.last, st.Path) >= 0 {
		return fmt.Errorf("the client listed %q after %q: a list must be in the order of its names, and have each once", st.Path, r.last)
	}
	r.last = st.Path
	parent := path.Dir(st.Path)
	for r.dir != parent {
		if r.dir == "." {
			return fmt.Errorf("the client listed %q before its folder", st.Path)
		}
		r.dir = path.Dir(r.dir)
	}
	if os.FileMode(st.Mode).IsDir() {
		r.dir = st.Path
	}
	if r.only == nil {
		return r.compare(id, st)
	}
	take, err := r.only.note(st, &r.room)
	if err != nil {
		return err
	}
	for _, st := range take {
		if err := r.compare(id, st); err != nil { // of folders the number does not matter
			return err
		}
	}
	return nil
}

// compare puts an entry in the place of what the mirror has.
func (r *receiver) compare(id uint32, st *types.Stat) error {
	old := r.known[st.Path]
	delete(r.known, st.Path)
	if err := r.put(id, old, st); err != nil {
		return fmt.Errorf("%s: %w", st.Path, err)
	}
	return nil
}

// put makes an entry what the list says, or asks for its content.
func (r *receiver) put(id uint32, old, st *types.Stat) error {
	mode := os.FileMode(st.Mode)
	switch {
	case mode.IsDir():
		r.dirs = append(r.dirs, st)
		if old != nil && os.FileMode(old.Mode).IsDir() {
			if !same(old, st) {
				r.touched[st.Path] = true
			}
			return nil
		}
		r.touched[st.Path] = true
		return r.replace(st.Path, func() error { return r.makeDir(st.Path) })
	case mode.IsRegular() && st.Linkname != "":
		r.links = append(r.links, st)
		return nil
	case old != nil && same(old, st) && !(r.anew && mode.IsRegular()):
		return nil
	case mode.IsRegular():
		if err := r.room.take(st.Size); err != nil {
			return err
		}
		r.pending[id] = &incoming{stat: st}
		r.asker.ask(id)
		return nil
	case mode&fs.ModeSymlink != 0:
		if err := r.replace(st.Path, func() error { return r.root.Symlink(st.Linkname, st.Path) }); err != nil {
			return err
		}
		return r.setLinkTime(st)
	case mode&(fs.ModeNamedPipe|fs.ModeDevice) != 0:
		return r.replace(st.Path, func() error { return r.makeNode(st) })
	}
	return nil // a socket, which no source has
}

// makeDir makes a folder. Another filter may have let it through before.
func (r *receiver) makeDir(name string) error {
	if info, err := r.root.Lstat(name); err == nil && info.IsDir() {
		return nil
	}
	return r.root.Mkdir(name, 0o700)
}

// same reports whether the list says of an entry what the mirror says. The owner is
// not looked at: to a build, a client's files belong to 0:0.
func same(a, b *types.Stat) bool {
	mode := os.FileMode(a.Mode)
	if a.Mode != b.Mode || a.ModTime != b.ModTime || a.Linkname != b.Linkname || a.Devmajor != b.Devmajor || a.Devminor != b.Devminor {
		return false
	}
	if mode.IsRegular() && a.Size != b.Size {
		return false
	}
	return maps.EqualFunc(a.Xattrs, b.Xattrs, bytes.Equal)
}

// replace makes something at a path, in the place of what is there.
func (r *receiver) replace(name string, make func() error) error {
	r.touched[path.Dir(name)] = true
	err := make()
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := r.root.RemoveAll(name); err != nil {
		return err
	}
	r.removed[name] = true
	return make()
}

// wentBefore reports whether a path went with a folder above it. What bears that
// folder's name now may be a link, and must not be followed.
func (r *receiver) wentBefore(name string) bool {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if r.removed[dir] {
			return true
		}
	}
	return false
}

// finish does what can be done only when every file is there: hard links, what the
// client has no more, the modes and times of folders.
func (r *receiver) finish() error {
	if r.only != nil {
		if err := r.only.finish(); err != nil {
			return err
		}
	}
	for _, st := range r.links {
		if err := r.link(st); err != nil {
			return fmt.Errorf("linking %s: %w", st.Path, err)
		}
	}
	gone := slices.Sorted(maps.Keys(r.known))
	for _, name := range slices.Backward(gone) {
		if r.wentBefore(name) {
			continue
		}
		// A folder may hold what another filter lets through.
		err := r.root.Remove(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !os.FileMode(r.known[name].Mode).IsDir() {
			return fmt.Errorf("removing what the client has no more: %w", err)
		}
		r.touched[path.Dir(name)] = true
	}
	for _, st := range slices.Backward(r.dirs) {
		if !r.touched[st.Path] {
			continue
		}
		if err := r.describe(st); err != nil {
			return err
		}
	}
	return nil
}

// link makes a hard link to a file that the list has named before.
func (r *receiver) link(st *types.Stat) error {
	to := path.Clean(st.Linkname)
	if !filepath.IsLocal(to) {
		return fmt.Errorf("a link to %q, which is outside", st.Linkname)
	}
	target, err := r.root.Lstat(to)
	if err != nil {
		return err
	}
	if !target.Mode().IsRegular() {
		return fmt.Errorf("a link to %s, which is no file", to)
	}
	if there, err := r.root.Lstat(st.Path); err == nil && os.SameFile(there, target) {
		return nil
	}
	return r.replace(st.Path, func() error { return r.root.Link(to, st.Path) })
}

// asker sends requests. It has a goroutine of its own and a queue without a bound:
// a client stops reading while its own queue is full, until somebody reads what it
// sends.
type asker struct {
	mu    sync.Mutex
	wake  *sync.Cond
	queue []uint32
	fin   bool // everything is here: tell the client
	ended bool
}

func (a *asker) ask(id uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.queue = append(a.queue, id)
	a.wake.Signal()
}

func (a *asker) finish() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fin = true
	a.wake.Signal()
}

func (a *asker) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	a.wake.Signal()
}

// run sends until stop; an error of the stream shows at its reading end too.
func (a *asker) run(stream filesync.FileSync_DiffCopyClient) {
	told := false
	for {
		a.mu.Lock()
		for len(a.queue) == 0 && !a.ended && (!a.fin || told) {
			a.wake.Wait()
		}
		queue := a.queue
		a.queue = nil
		fin, ended := a.fin, a.ended
		a.mu.Unlock()
		for _, id := range queue {
			if stream.SendMsg(&types.Packet{Type: types.PACKET_REQ, ID: id}) != nil {
				return
			}
		}
		if fin && !told {
			told = true
			if stream.SendMsg(&types.Packet{Type: types.PACKET_FIN}) != nil {
				return
			}
		}
		if ended {
			return
		}
	}
}
