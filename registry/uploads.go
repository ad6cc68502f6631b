package registry

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
)

const (
	// worthWaiting is the size from which a blob that is on its way to another
	// repository of the same registry is waited for and mounted from there. Smaller
	// ones are sent sooner than waited for.
	worthWaiting = 64 << 10
	// patience is how long an upload that is waited for may make no progress. After
	// that the blob is sent beside it: one who is slow must not make others slow.
	patience = time.Second
	// maxSent bounds the uploads that are remembered; there are ten thousands of them
	// only in daemons, and to forget one costs an upload.
	maxSent = 10_000
)

// Uploads knows which blobs go to which repositories, so that an image and a cache
// that have a layer in common, on one registry, send it once: the second mounts it
// from the first's repository. The zero value is ready, and safe for concurrent use.
type Uploads struct {
	mu    sync.Mutex // guards the maps
	sent  map[blobAt]string
	going map[blobAt]*sending
}

// blobAt is a blob at a registry.
type blobAt struct {
	host   string
	digest blob.Digest
}

// sending is an upload under way.
type sending struct {
	name  string // of the repository
	bytes atomic.Int64
	ended chan struct{}
}

// begin gives the repository that has the blob, as far as is known, after an upload
// that is under way, or that there is none. Then the caller sends it: s, if it is
// not nil, is to be ended when that is done.
func (u *Uploads) begin(ctx context.Context, at blobAt, name string, size int64) (from string, s *sending) {
	if u == nil {
		return "", nil
	}
	for {
		u.mu.Lock()
		if from, ok := u.sent[at]; ok {
			u.mu.Unlock()
			return from, nil
		}
		other := u.going[at]
		if other == nil {
			s = &sending{name: name, ended: make(chan struct{})}
			if u.going == nil {
				u.going = map[blobAt]*sending{}
			}
			u.going[at] = s
			u.mu.Unlock()
			return "", s
		}
		u.mu.Unlock()
		if size < worthWaiting || !other.wait(ctx) {
			return "", nil
		}
	}
}

// end says what became of an upload.
func (u *Uploads) end(at blobAt, s *sending, err error) {
	if s == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.going, at)
	if err == nil {
		u.remember(at, s.name)
	}
	close(s.ended)
}

// remember notes that a repository has a blob; u.mu is held.
func (u *Uploads) remember(at blobAt, name string) {
	if u.sent == nil || len(u.sent) >= maxSent {
		u.sent = map[blobAt]string{}
	}
	u.sent[at] = name
}

// forget takes back that a repository has a blob.
func (u *Uploads) forget(at blobAt) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.sent, at)
}

// wait waits for the end of an upload, or until it makes no progress.
func (s *sending) wait(ctx context.Context) (ended bool) {
	t := time.NewTicker(patience)
	defer t.Stop()
	for before := s.bytes.Load(); ; {
		select {
		case <-s.ended:
			return true
		case <-ctx.Done():
			return false
		case <-t.C:
			now := s.bytes.Load()
			if now == before {
				return false
			}
			before = now
		}
	}
}

// counted is content whose progress others can see.
func (s *sending) counted(open Content) Content {
	if s == nil {
		return open
	}
	return func(ctx context.Context) (io.ReadCloser, error) {
		r, err := open(ctx)
		if err != nil {
			return nil, err
		}
		return &countedContent{r, &s.bytes}, nil
	}
}

type countedContent struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c *countedContent) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}
