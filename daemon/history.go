package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/daemon/history"
	"github.com/kiln-build/kiln/daemon/internal/fault"
)

// openHistory opens the folder of records; nil where the configuration wants none.
func (s *Server) openHistory() (*history.Store, error) {
	c := s.engine.Config().History
	if c.Off() {
		return nil, nil
	}
	entries, age := c.Bounds()
	return history.Open(s.engine.Path("history"), history.Options{MaxEntries: entries, MaxAge: age, Clock: s.o.Clock})
}

// snapshot gives the record as it is now.
func (n *build) snapshot() *controlapi.BuildHistoryRecord {
	n.mu.Lock()
	defer n.mu.Unlock()
	return proto.CloneOf(n.record)
}

// ended is a build that the history has.
type ended struct {
	kept   *history.Store
	record *controlapi.BuildHistoryRecord
}

// watch sends what was kept of the build's status stream.
func (e ended) watch(ctx context.Context, send func(*controlapi.StatusResponse) error) error {
	if e.record.Logs == nil {
		return nil
	}
	f, _, err := e.kept.OpenBlob(digestOf(e.record.Logs))
	if err != nil {
		return fault.New(codes.NotFound, err.Error())
	}
	defer f.Close()
	return history.ReadStatuses(f, func(m *controlapi.StatusResponse) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return send(m)
	})
}

// listener is somebody who is told of builds as they come and go. Its queue has no
// end of its own, but holds records of builds only, a few for each.
type listener struct {
	ref    string
	filter history.Filter
	queue  []*controlapi.BuildHistoryEvent
	wake   chan struct{} // has room for one
}

func (l *listener) wants(kind controlapi.BuildHistoryEventType, r *controlapi.BuildHistoryRecord) bool {
	return (l.ref == "" || l.ref == r.Ref) && (kind == controlapi.BuildHistoryEventType_DELETED || l.filter(r))
}

// tell queues an event for all listeners. j.mu is held.
func (j *builds) tell(kind controlapi.BuildHistoryEventType, r *controlapi.BuildHistoryRecord) {
	for l := range j.listeners {
		if !l.wants(kind, r) {
			continue
		}
		l.queue = append(l.queue, &controlapi.BuildHistoryEvent{Type: kind, Record: r})
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// tellGone queues the events of records that were collected.
func (j *builds) tellGone(refs []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, ref := range refs {
		j.tell(controlapi.BuildHistoryEventType_DELETED, &controlapi.BuildHistoryRecord{Ref: ref})
	}
}

// settle waits until the records of builds that have ended are written.
func (j *builds) settle(ctx context.Context, ref string) error {
	j.mu.Lock()
	var wait []*build
	for _, n := range j.order {
		n.mu.Lock()
		done := n.done
		n.mu.Unlock()
		if done && (ref == "" || ref == n.ref) {
			wait = append(wait, n)
		}
	}
	j.mu.Unlock()
	for _, n := range wait {
		select {
		case <-n.recorded:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// listen begins to listen: the builds that are known come first.
func (j *builds) listen(req *controlapi.BuildHistoryRequest) (*listener, func(), error) {
	filter, err := history.ParseFilter(req.Filter, j.clock())
	if err != nil {
		return nil, nil, fault.New(codes.InvalidArgument, err.Error())
	}
	if req.Limit < 0 {
		return nil, nil, fault.New(codes.InvalidArgument, fmt.Sprintf("invalid limit %d", req.Limit))
	}
	l := &listener{ref: req.Ref, filter: filter, wake: make(chan struct{}, 1)}
	j.mu.Lock()
	defer j.mu.Unlock()
	add := func(kind controlapi.BuildHistoryEventType, list []*controlapi.BuildHistoryRecord) {
		for _, r := range list {
			l.queue = append(l.queue, &controlapi.BuildHistoryEvent{Type: kind, Record: r})
		}
	}
	add(controlapi.BuildHistoryEventType_STARTED, j.underWay(l))
	if !req.ActiveOnly && j.kept != nil {
		var match []*controlapi.BuildHistoryRecord
		for _, r := range j.kept.List() {
			if l.wants(controlapi.BuildHistoryEventType_COMPLETE, r) {
				match = append(match, r)
			}
		}
		add(controlapi.BuildHistoryEventType_COMPLETE, history.Newest(match, int(req.Limit)))
	}
	j.listeners[l] = true
	return l, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(j.listeners, l)
	}, nil
}

// underWay gives the records of builds that have not ended. j.mu is held.
func (j *builds) underWay(l *listener) []*controlapi.BuildHistoryRecord {
	var out []*controlapi.BuildHistoryRecord
	for _, n := range j.order {
		r := n.snapshot()
		if r.CompletedAt == nil && !n.request.Internal && l.wants(controlapi.BuildHistoryEventType_STARTED, r) {
			out = append(out, r)
		}
	}
	return out
}

// ListenBuildHistory sends the records of builds, and, unless the client wants to
// leave early, of those that come.
func (s *Server) ListenBuildHistory(req *controlapi.BuildHistoryRequest, stream controlapi.Control_ListenBuildHistoryServer) error {
	if err := s.sendTime(stream); err != nil {
		return err
	}
	// Who asks when a build was just answered finds its record.
	if err := s.builds.settle(stream.Context(), req.Ref); err != nil {
		return err
	}
	l, stop, err := s.builds.listen(req)
	if err != nil {
		return err
	}
	defer stop()
	for {
		s.builds.mu.Lock()
		queue := l.queue
		l.queue = nil
		s.builds.mu.Unlock()
		for _, e := range queue {
			if err := stream.Send(e); err != nil {
				return err
			}
		}
		if req.EarlyExit {
			return nil
		}
		select {
		case <-l.wake:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// UpdateBuildHistory pins, unpins or deletes a record, or finalizes it: waits for
// the client's spans no longer.
func (s *Server) UpdateBuildHistory(ctx context.Context, req *controlapi.UpdateBuildHistoryRequest) (*controlapi.UpdateBuildHistoryResponse, error) {
	j := s.builds
	if err := j.settle(ctx, req.Ref); err != nil {
		return nil, err
	}
	if req.Finalize || req.Delete {
		if err := j.finalize(ctx, req.Ref); err != nil {
			return nil, err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, ok := j.byRef[req.Ref]; ok {
		if req.Finalize {
			return &controlapi.UpdateBuildHistoryResponse{}, nil
		}
		return nil, fault.New(codes.FailedPrecondition, fmt.Sprintf("the build %s has not ended", req.Ref))
	}
	missing := fault.New(codes.NotFound, fmt.Sprintf("failed to retrieve history record %s", req.Ref))
	if j.kept == nil {
		return nil, missing
	}
	var err error
	switch {
	case req.Delete:
		if err = j.kept.Delete(req.Ref); err == nil {
			j.tell(controlapi.BuildHistoryEventType_DELETED, &controlapi.BuildHistoryRecord{Ref: req.Ref})
		}
	case req.Finalize:
		if _, ok := j.kept.Get(req.Ref); !ok {
			err = missing
		}
	default:
		var r *controlapi.BuildHistoryRecord
		if r, err = j.kept.Update(req.Ref, func(r *controlapi.BuildHistoryRecord) { r.Pinned = req.Pinned }); err == nil {
			j.tell(controlapi.BuildHistoryEventType_COMPLETE, r)
		}
	}
	if errors.Is(err, history.ErrNotFound) {
		err = missing
	}
	if err != nil {
		return nil, err
	}
	return &controlapi.UpdateBuildHistoryResponse{}, nil
}

// sortedByStart orders spans.
func sortedByStart(list []span) []span {
	out := slices.Clone(list)
	slices.SortStableFunc(out, func(a, b span) int { return a.started.Compare(b.started) })
	return out
}
