package history

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/opencontainers/go-digest"
)

// Draft is a record in the making: its attachments are written before it. One of
// Commit and Discard is called. It belongs to one goroutine.
type Draft struct {
	store  *Store
	folder string
}

// Draft begins a record.
func (s *Store) Draft() (*Draft, error) {
	d := &Draft{store: s, folder: draftPrefix + rand.Text()}
	if err := s.root.Mkdir(d.folder, 0o700); err != nil {
		return nil, fmt.Errorf("beginning a record: %w", err)
	}
	return d, nil
}

// Attach writes an attachment and gives its descriptor.
func (d *Draft) Attach(mediaType string, write func(io.Writer) error) (*controlapi.Descriptor, error) {
	desc, err := d.store.attach(d.folder, mediaType, write)
	if err != nil {
		return nil, fmt.Errorf("attaching to a record: %w", err)
	}
	return desc, nil
}

// AttachBytes writes an attachment that is in memory.
func (d *Draft) AttachBytes(mediaType string, data []byte) (*controlapi.Descriptor, error) {
	return d.Attach(mediaType, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// Commit puts the record into the store, in the place of one with its ref.
func (d *Draft) Commit(r *controlapi.BuildHistoryRecord) error {
	s := d.store
	if err := s.writeRecord(d.folder, r); err != nil {
		d.Discard()
		return fmt.Errorf("writing record %s: %w", r.Ref, err)
	}
	folder := folderOf(r.Ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(r.Ref)
	err := s.root.RemoveAll(folder)
	if err == nil {
		err = s.root.Rename(d.folder, folder)
	}
	if err != nil {
		d.Discard()
		return fmt.Errorf("writing record %s: %w", r.Ref, err)
	}
	s.put(folder, r)
	return nil
}

// Discard leaves nothing of the record.
func (d *Draft) Discard() { _ = d.store.root.RemoveAll(d.folder) }

// AttachTo adds an attachment to a record that is there; note puts it into the
// record. It gives the new record.
func (s *Store) AttachTo(ref, mediaType string, write func(io.Writer) error, note func(*controlapi.BuildHistoryRecord, *controlapi.Descriptor)) (*controlapi.BuildHistoryRecord, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.records[ref]; !ok {
		return nil, fmt.Errorf("record %s: %w", ref, ErrNotFound)
	}
	desc, err := s.attach(folderOf(ref), mediaType, write)
	if err != nil {
		return nil, fmt.Errorf("attaching to record %s: %w", ref, err)
	}
	return s.update(ref, func(r *controlapi.BuildHistoryRecord) { note(r, desc) })
}

// attach writes a file and names it by what it holds.
func (s *Store) attach(folder, mediaType string, write func(io.Writer) error) (*controlapi.Descriptor, error) {
	temp := filepath.Join(folder, draftPrefix+rand.Text())
	f, err := s.root.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	c := &counter{}
	hash := sha256.New()
	w := bufio.NewWriterSize(io.MultiWriter(f, hash, c), 64<<10)
	err = write(w)
	err = errors.Join(err, w.Flush(), f.Close())
	sum := hex.EncodeToString(hash.Sum(nil))
	if err == nil {
		err = s.root.Rename(temp, filepath.Join(folder, sum))
	}
	if err != nil {
		return nil, errors.Join(err, s.root.Remove(temp))
	}
	return &controlapi.Descriptor{
		MediaType: mediaType, Digest: digest.NewDigestFromEncoded(digest.SHA256, sum).String(), Size: c.n,
	}, nil
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// Blob is an attachment that is open.
type Blob interface {
	io.ReaderAt
	io.ReadSeekCloser
}

// OpenBlob opens an attachment of whichever record has it.
func (s *Store) OpenBlob(d digest.Digest) (Blob, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, folder := range s.blobs[d] {
		f, err := s.root.Open(filepath.Join(folder, d.Encoded()))
		if err != nil {
			continue
		}
		info, err := f.Stat()
		if err != nil {
			f.Close()
			continue
		}
		return f, info.Size(), nil
	}
	return nil, 0, fmt.Errorf("content %s: %w", d, ErrNotFound)
}

// Blobs lists the digests of all attachments.
func (s *Store) Blobs() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]digest.Digest, 0, len(s.blobs))
	for d := range s.blobs {
		out = append(out, d)
	}
	return out
}
