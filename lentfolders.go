package kiln

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/moby/patternmatcher"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/worker"
)

// lentFolders are the folders of a build on this machine. They are read in place; only
// where metadata alone is wanted of one, a folder is made that holds what is wanted.
type lentFolders struct {
	folders
	temp string

	mu   sync.Mutex
	made []string
}

// Local gives a folder, or what was made of it.
func (l *lentFolders) Local(ctx context.Context, name string, f worker.Filter, came func(int)) (string, error) {
	dir, err := l.folders.Local(ctx, name, f, came)
	if err != nil || !f.MetadataOnly {
		return dir, err
	}
	wanted, err := patternmatcher.New(f.Exceptions)
	if err != nil {
		return "", fmt.Errorf("what is wanted beside metadata: %w", err)
	}
	from, err := fsutil.NewFS(dir)
	if err != nil {
		return "", err
	}
	from, err = fsutil.NewFilterFS(from, &fsutil.FilterOpt{
		IncludePatterns: f.Include, FollowPaths: f.Follow,
		// The receiver loses count where this one is in the list.
		ExcludePatterns: append(f.Exclude[:len(f.Exclude):len(f.Exclude)], ".fsutil-metadata"),
		Map: func(_ string, s *types.Stat) fsutil.MapResult {
			s.Uid, s.Gid = 0, 0 // as everywhere in a local folder
			return fsutil.MapResultKeep
		},
	})
	if err != nil {
		return "", err
	}
	to, err := os.MkdirTemp(l.temp, "metadata-")
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	l.made = append(l.made, to)
	l.mu.Unlock()
	return to, copyMetadata(ctx, from, to, func(p string, _ *types.Stat) bool {
		ok, err := wanted.MatchesOrParentMatches(p)
		return err == nil && ok
	})
}

// close removes what was made.
func (l *lentFolders) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, dir := range l.made {
		os.RemoveAll(dir)
	}
	l.made = nil
}

// copyMetadata does what a client and a daemon do, in one process.
func copyMetadata(ctx context.Context, from fsutil.FS, to string, wanted fsutil.FilterFunc) error {
	group, ctx := errgroup.WithContext(ctx)
	there, back := make(chan *types.Packet, 64), make(chan *types.Packet, 64)
	group.Go(func() error {
		defer close(there)
		return fsutil.Send(ctx, packets{ctx, back, there}, from, nil)
	})
	group.Go(func() error {
		defer close(back)
		return fsutil.Receive(ctx, packets{ctx, there, back}, to, fsutil.ReceiveOpt{MetadataOnly: wanted})
	})
	return group.Wait()
}

// packets is one end of a stream.
type packets struct {
	ctx context.Context
	in  <-chan *types.Packet
	out chan<- *types.Packet
}

// Context is that of the transfer.
func (p packets) Context() context.Context { return p.ctx }

// RecvMsg takes a packet.
func (p packets) RecvMsg(m any) error {
	select {
	case got, ok := <-p.in:
		if !ok {
			return io.EOF
		}
		proto.Merge(m.(*types.Packet), got)
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}

// SendMsg gives a copy of a packet: the sender fills its memory again.
func (p packets) SendMsg(m any) error {
	select {
	case p.out <- proto.Clone(m.(*types.Packet)).(*types.Packet):
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}
