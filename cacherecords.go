package kiln

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote"
	"github.com/kiln-build/kiln/solver"
)

// records are those of the state folder, and behind them, for the builds that named
// them, those of remote caches.
type records struct {
	*cache.Cache
	forget func(cache.LayerID) error // the solver's

	mu      sync.Mutex // guards what follows
	imports []imported
	mounts  map[solver.SessionID][]string // the cache mounts that builds have used
}

// imported is a remote cache that a build reads. Only that build is told what it
// says: whom to trust, and how long to wait for it, is for each build to choose. Its
// blobs are for all, since a layer that came from it may be met by any build, and
// bytes are checked.
type imported struct {
	*remote.Import
	session solver.SessionID
}

func (r *records) add(session solver.SessionID, i *remote.Import) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.imports = append(slices.Clip(r.imports), imported{i, session})
}

func (r *records) remove(i *remote.Import) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.imports = slices.DeleteFunc(slices.Clone(r.imports), func(o imported) bool { return o.Import == i })
}

func (r *records) open() []imported {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.imports
}

// LookupFor finds a record here or in a remote cache of the session, which makes it one
// of those here.
func (r *records) LookupFor(session solver.SessionID, k cache.Key) (cache.Record, error) {
	rec, err := r.Cache.Lookup(k)
	if err == nil && rec.Whole() {
		return rec, nil
	}
	// One that lacks outputs does where nobody has them all.
	for _, i := range r.open() {
		if i.session != session {
			continue
		}
		if found, rerr := i.Lookup(k); rerr == nil && (err != nil || found.Whole()) {
			if rec, err = found, r.Cache.Store(found, k); err != nil || rec.Whole() {
				break
			}
		}
	}
	return rec, err
}

// ForgetLayer forgets a layer that could not be had, and with it what a remote
// cache is not counted on for any more.
func (r *records) ForgetLayer(id cache.LayerID) error {
	err := r.Cache.ForgetLayer(id)
	for _, i := range r.open() {
		for _, other := range i.Lost(id) {
			err = errors.Join(err, r.forget(other))
		}
	}
	return err
}

// Holds says whether a remote cache lists a layer.
func (r *records) Holds(id cache.LayerID) bool {
	return slices.ContainsFunc(r.open(), func(i imported) bool { return i.Holds(id) })
}

// Passing gives a blob of a layer that a remote cache holds for those who need its files.
func (r *records) Passing(l cache.Layer) (blob.Descriptor, bool) {
	for _, i := range r.open() {
		if d, ok := i.Passing(l); ok {
			return d, true
		}
	}
	return blob.Descriptor{}, false
}

// Blob reads a blob of a remote cache.
func (r *records) Blob(ctx context.Context, d blob.Descriptor, offset int64) (io.ReadCloser, error) {
	err := fmt.Errorf("blob %s is in no remote cache: %w", d.Digest, fs.ErrNotExist)
	for _, i := range r.open() {
		var body io.ReadCloser
		if body, err = i.Blob(ctx, d, offset); err == nil {
			return body, nil
		}
	}
	return nil, err
}

// Fill fills the folder of a cache mount that is new here with the snapshot that a
// remote cache of the sessions has of it; false leaves it empty.
func (r *records) Fill(ctx context.Context, sessions []solver.SessionID, id, dir string, warn func(string)) bool {
	for _, i := range r.open() {
		if !slices.Contains(sessions, i.session) {
			continue
		}
		ok, err := i.Mount(ctx, id, dir)
		if err == nil && ok {
			return true
		}
		if err == nil {
			continue
		}
		warn(fmt.Sprintf("the cache mount %q is not brought back from %s: %v", id, i.Name(), err))
		if err := empty(dir); err != nil {
			return false // the step will find out
		}
	}
	return false
}

// empty removes what is in a folder.
func empty(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, root.RemoveAll(e.Name()))
	}
	return err
}

// Used notes that a step of a build uses a cache mount.
func (r *records) Used(session solver.SessionID, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mounts == nil {
		r.mounts = map[solver.SessionID][]string{}
	}
	if !slices.Contains(r.mounts[session], id) {
		r.mounts[session] = append(r.mounts[session], id)
	}
}

// mountsOf gives the cache mounts that a build has used.
func (r *records) mountsOf(session solver.SessionID) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.mounts[session])
}

func (r *records) endMounts(session solver.SessionID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.mounts, session)
}
