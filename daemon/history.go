package daemon

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/daemon/internal/fault"
)

// counts are what the record of a build says of its steps.
type counts struct {
	total, completed, cached map[digest.Digest]bool
	warnings                 int
}

func newCounts() counts {
	return counts{total: map[digest.Digest]bool{}, completed: map[digest.Digest]bool{}, cached: map[digest.Digest]bool{}}
}

func (c *counts) add(s *client.SolveStatus) {
	for _, v := range s.Vertexes {
		c.total[v.Digest] = true
		if v.Completed != nil {
			c.completed[v.Digest] = true
		}
		if v.Cached {
			c.cached[v.Digest] = true
		}
	}
	c.warnings += len(s.Warnings)
}

// newRecord begins the record of a build.
func newRecord(req *controlapi.SolveRequest, now time.Time) *controlapi.BuildHistoryRecord {
	return &controlapi.BuildHistoryRecord{
		Ref: req.Ref, Frontend: req.Frontend, FrontendAttrs: maps.Clone(req.FrontendAttrs),
		Exporters: slices.Clone(req.Exporters), CreatedAt: timestamppb.New(now),
	}
}

// finish completes the record.
func (n *build) finish(now time.Time, result *kiln.Result, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.record
	r.CompletedAt = timestamppb.New(now)
	r.NumTotalSteps, r.NumCompletedSteps = int32(len(n.counts.total)), int32(len(n.counts.completed))
	r.NumCachedSteps, r.NumWarnings = int32(len(n.counts.cached)), int32(n.counts.warnings)
	r.Generation++
	if err != nil {
		r.Error = fault.Status(err).Proto()
	} else {
		r.ExporterResponse = maps.Clone(result.Metadata)
	}
	n.done = true
	close(n.news)
	n.news = make(chan struct{})
}

// snapshot gives the record as it is now.
func (n *build) snapshot() *controlapi.BuildHistoryRecord {
	n.mu.Lock()
	defer n.mu.Unlock()
	return proto.CloneOf(n.record)
}

// listener is somebody who is told of builds as they come and go. Its queue has no
// end of its own, but holds records of builds only, a few for each.
type listener struct {
	ref   string
	queue []*controlapi.BuildHistoryEvent
	wake  chan struct{} // has room for one
}

// tell queues an event for all listeners. j.mu is held.
func (j *builds) tell(kind controlapi.BuildHistoryEventType, n *build) {
	if n.request.Internal {
		return
	}
	for l := range j.listeners {
		if l.ref != "" && l.ref != n.ref {
			continue
		}
		l.queue = append(l.queue, &controlapi.BuildHistoryEvent{Type: kind, Record: n.snapshot()})
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// listen begins to listen: the builds that are known come first.
func (j *builds) listen(req *controlapi.BuildHistoryRequest) (*listener, func()) {
	l := &listener{ref: req.Ref, wake: make(chan struct{}, 1)}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, n := range j.order {
		if n.request.Internal || req.Ref != "" && n.ref != req.Ref {
			continue
		}
		n.mu.Lock()
		done := n.done
		n.mu.Unlock()
		kind := controlapi.BuildHistoryEventType_STARTED
		if done {
			if req.ActiveOnly {
				continue
			}
			kind = controlapi.BuildHistoryEventType_COMPLETE
		}
		l.queue = append(l.queue, &controlapi.BuildHistoryEvent{Type: kind, Record: n.snapshot()})
	}
	if limit := int(req.Limit); limit > 0 && len(l.queue) > limit {
		l.queue = l.queue[len(l.queue)-limit:]
	}
	j.listeners[l] = true
	return l, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(j.listeners, l)
	}
}

// ListenBuildHistory sends the records of builds, and, unless the client wants to
// leave early, of those that come.
func (s *Server) ListenBuildHistory(req *controlapi.BuildHistoryRequest, stream controlapi.Control_ListenBuildHistoryServer) error {
	if len(req.Filter) > 0 {
		return fault.New(codes.Unimplemented, "filters of the history are not supported by kiln")
	}
	if err := s.sendTime(stream); err != nil {
		return err
	}
	l, stop := s.builds.listen(req)
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

// UpdateBuildHistory pins, unpins or deletes a record. There is nothing to
// finalize: a record is complete when its build is.
func (s *Server) UpdateBuildHistory(_ context.Context, req *controlapi.UpdateBuildHistoryRequest) (*controlapi.UpdateBuildHistoryResponse, error) {
	j := s.builds
	j.mu.Lock()
	defer j.mu.Unlock()
	n, ok := j.byRef[req.Ref]
	if !ok {
		return nil, fault.New(codes.NotFound, fmt.Sprintf("failed to retrieve history record %s", req.Ref))
	}
	n.mu.Lock()
	done := n.done
	if !req.Delete && !req.Finalize {
		n.record.Pinned = req.Pinned
		n.record.Generation++
	}
	n.mu.Unlock()
	switch {
	case req.Delete && !done:
		return nil, fault.New(codes.FailedPrecondition, fmt.Sprintf("the build %s has not ended", req.Ref))
	case req.Delete:
		j.drop(n)
	case !req.Finalize && done:
		j.tell(controlapi.BuildHistoryEventType_COMPLETE, n)
	}
	return &controlapi.UpdateBuildHistoryResponse{}, nil
}
