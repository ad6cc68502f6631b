// Package history keeps records of builds that have ended, in a folder, so that
// they outlive the daemon.
//
// A record is BuildKit's BuildHistoryRecord: who asked for what, when, and how it
// ended. It names attachments by digest: the status stream, the error in full, the
// manifests that were made, the provenance, the trace. A record and its attachments
// are one folder, so that nothing has to be counted:
//
//	<dir>/<hash of the ref>/record       the record, as protobuf
//	<dir>/<hash of the ref>/<hex>        an attachment, by its sha256
//	<dir>/.new-…                         a record in the making (Draft)
//
// A record stays while it is pinned, or one of the newest MaxEntries, or younger
// than MaxAge. A folder that cannot be read, or lacks an attachment, is removed
// when the store is opened: a history is worth no error.
package history

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
)

const (
	// recordFile is the record's file in its folder.
	recordFile = "record"
	// draftPrefix begins the names of folders that are not whole.
	draftPrefix = ".new-"
	// maxRecord bounds a record that is read.
	maxRecord = 64 << 20
)

// Options are the settings of a store.
type Options struct {
	// MaxEntries is how many records stay whatever their age; pinned ones do not count.
	MaxEntries int
	// MaxAge is for how long further ones stay.
	MaxAge time.Duration
	// Clock tells the time; nil is time.Now.
	Clock func() time.Time
}

// ErrNotFound says that there is no such record or attachment.
var ErrNotFound = errors.New("not found in the history")

// Store is the records of ended builds. It is safe for concurrent use.
type Store struct {
	root *os.Root
	o    Options

	mu      sync.Mutex // guards what is below
	records map[string]*controlapi.BuildHistoryRecord
	blobs   map[digest.Digest][]string // the folders that have an attachment
	held    map[string][]digest.Digest // the attachments in a folder
}

// Open opens the store in a folder, making it where it is missing, and removes
// what is not whole.
func Open(dir string, o Options) (*Store, error) {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the history: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the history: %w", err)
	}
	s := &Store{root: root, o: o, records: map[string]*controlapi.BuildHistoryRecord{}, blobs: map[digest.Digest][]string{}, held: map[string][]digest.Digest{}}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("reading the history: %w", err), root.Close())
	}
	_, err = s.Collect()
	return s, err
}

// Close lets the folder go.
func (s *Store) Close() error { return s.root.Close() }

func (s *Store) load() error {
	entries, err := fs.ReadDir(s.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		r, err := s.read(e.Name())
		if err != nil {
			if err := s.root.RemoveAll(e.Name()); err != nil {
				return err
			}
			continue
		}
		s.put(e.Name(), r)
	}
	return nil
}

// read reads a record, and sees that its attachments are there.
func (s *Store) read(folder string) (*controlapi.BuildHistoryRecord, error) {
	if strings.HasPrefix(folder, draftPrefix) {
		return nil, errors.New("the record is not whole")
	}
	name := filepath.Join(folder, recordFile)
	info, err := s.root.Lstat(name)
	if err != nil || info.Size() > maxRecord {
		return nil, errors.Join(err, errors.New("the record cannot be read"))
	}
	data, err := s.root.ReadFile(name)
	if err != nil {
		return nil, err
	}
	r := &controlapi.BuildHistoryRecord{}
	if err := proto.Unmarshal(data, r); err != nil {
		return nil, err
	}
	if folderOf(r.Ref) != folder {
		return nil, errors.New("the record is of another build")
	}
	for _, d := range attachments(r) {
		info, err := s.root.Lstat(filepath.Join(folder, digest.Digest(d.Digest).Encoded()))
		if err != nil || info.Size() != d.Size || !info.Mode().IsRegular() {
			return nil, errors.New("an attachment is missing")
		}
	}
	return r, nil
}

// put makes a record known. s.mu is held, or nobody else has s.
func (s *Store) put(folder string, r *controlapi.BuildHistoryRecord) {
	s.forget(r.Ref)
	s.records[r.Ref] = r
	// Not only what the record names: a manifest names others.
	entries, _ := fs.ReadDir(s.root.FS(), folder)
	for _, e := range entries {
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if d.Validate() == nil {
			s.blobs[d] = append(s.blobs[d], folder)
			s.held[folder] = append(s.held[folder], d)
		}
	}
}

// forget makes a record unknown. s.mu is held, or nobody else has s.
func (s *Store) forget(ref string) {
	delete(s.records, ref)
	folder := folderOf(ref)
	for _, d := range s.held[folder] {
		s.blobs[d] = slices.DeleteFunc(s.blobs[d], func(f string) bool { return f == folder })
		if len(s.blobs[d]) == 0 {
			delete(s.blobs, d)
		}
	}
	delete(s.held, folder)
}

// folderOf names the folder of a build's record: refs are what clients choose.
func folderOf(ref string) string {
	sum := sha256.Sum256([]byte(ref))
	return hex.EncodeToString(sum[:16])
}

// attachments lists what a record names and its folder has to hold.
func attachments(r *controlapi.BuildHistoryRecord) []*controlapi.Descriptor {
	var out []*controlapi.Descriptor
	add := func(list ...*controlapi.Descriptor) {
		for _, d := range list {
			if d != nil && digest.Digest(d.Digest).Validate() == nil && digest.Digest(d.Digest).Algorithm() == digest.SHA256 {
				out = append(out, d)
			}
		}
	}
	result := func(i *controlapi.BuildResultInfo) {
		if i == nil {
			return
		}
		add(i.ResultDeprecated)
		add(i.Attestations...)
		for _, d := range i.Results {
			add(d)
		}
	}
	add(r.Logs, r.Trace, r.ExternalError)
	result(r.Result)
	for _, i := range r.Results {
		result(i)
	}
	return out
}

// Get gives the record of a build. It must not be changed.
func (s *Store) Get(ref string) (*controlapi.BuildHistoryRecord, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.records[ref]
	return r, ok
}

// List gives all records, those that began first before others. They must not be changed.
func (s *Store) List() []*controlapi.BuildHistoryRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*controlapi.BuildHistoryRecord, 0, len(s.records))
	for _, r := range s.records {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *controlapi.BuildHistoryRecord) int {
		if c := a.CreatedAt.AsTime().Compare(b.CreatedAt.AsTime()); c != 0 {
			return c
		}
		return strings.Compare(a.Ref, b.Ref)
	})
	return out
}

// Update changes a record, and gives the new one.
func (s *Store) Update(ref string, change func(*controlapi.BuildHistoryRecord)) (*controlapi.BuildHistoryRecord, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.update(ref, change)
}

func (s *Store) update(ref string, change func(*controlapi.BuildHistoryRecord)) (*controlapi.BuildHistoryRecord, error) {
	old, ok := s.records[ref]
	if !ok {
		return nil, fmt.Errorf("record %s: %w", ref, ErrNotFound)
	}
	r := proto.CloneOf(old)
	change(r)
	r.Ref = ref
	r.Generation++
	folder := folderOf(ref)
	if err := s.writeRecord(folder, r); err != nil {
		return nil, fmt.Errorf("changing record %s: %w", ref, err)
	}
	s.put(folder, r)
	return r, nil
}

// writeRecord writes a record in the place of the one that is there.
func (s *Store) writeRecord(folder string, r *controlapi.BuildHistoryRecord) error {
	data, err := proto.Marshal(r)
	if err != nil {
		return err
	}
	name := filepath.Join(folder, recordFile)
	if err := s.root.WriteFile(name+".new", data, 0o600); err != nil {
		return err
	}
	return s.root.Rename(name+".new", name)
}

// Delete removes a record and what is attached to it.
func (s *Store) Delete(ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.records[ref]; !ok {
		return fmt.Errorf("record %s: %w", ref, ErrNotFound)
	}
	return s.delete(ref)
}

func (s *Store) delete(ref string) error {
	s.forget(ref)
	if err := s.root.RemoveAll(folderOf(ref)); err != nil {
		return fmt.Errorf("removing record %s: %w", ref, err)
	}
	return nil
}

// Collect removes the records that need not stay, and gives their refs.
func (s *Store) Collect() (gone []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var old []*controlapi.BuildHistoryRecord
	for _, r := range s.records {
		if !r.Pinned {
			old = append(old, r)
		}
	}
	if len(old) <= s.o.MaxEntries {
		return nil, nil
	}
	slices.SortFunc(old, func(a, b *controlapi.BuildHistoryRecord) int {
		return b.CompletedAt.AsTime().Compare(a.CompletedAt.AsTime())
	})
	before := s.o.Clock().Add(-s.o.MaxAge)
	for _, r := range old[s.o.MaxEntries:] {
		if !r.CompletedAt.AsTime().Before(before) {
			continue
		}
		if err := s.delete(r.Ref); err != nil {
			return gone, err
		}
		gone = append(gone, r.Ref)
	}
	return gone, nil
}
