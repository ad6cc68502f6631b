package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/platforms"
	controlapi "github.com/moby/buildkit/api/services/control"
	types "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/session/grpchijack"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/daemon/internal/fault"
)

// apiVersion is the version of BuildKit whose API this is. Clients compare it to
// know what a daemon can do.
const apiVersion = "v0.33.1"

// timeHeader tells a client the daemon's time, by which it corrects what it shows.
const timeHeader = "buildkit-current-timestamp"

func (s *Server) sendTime(stream grpc.ServerStream) error {
	return stream.SendHeader(metadata.Pairs(timeHeader, s.o.Clock().Format(time.RFC3339Nano)))
}

// Status sends all that happens in a build.
func (s *Server) Status(req *controlapi.StatusRequest, stream controlapi.Control_StatusServer) error {
	if err := s.sendTime(stream); err != nil {
		return err
	}
	build, err := s.builds.find(stream.Context(), req.Ref)
	if err != nil {
		return err
	}
	return build.watch(stream.Context(), stream.Send)
}

// Session lends a client's connection to its builds, until it hangs up.
func (s *Server) Session(stream controlapi.Control_SessionServer) error {
	conn, closed, header := grpchijack.Hijack(stream)
	defer conn.Close()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		select {
		case <-closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	return s.sessions.HandleConn(ctx, conn, header)
}

// Info says what the daemon is.
func (s *Server) Info(context.Context, *controlapi.InfoRequest) (*controlapi.InfoResponse, error) {
	return &controlapi.InfoResponse{BuildkitVersion: s.version()}, nil
}

func (s *Server) version() *types.BuildkitVersion {
	return &types.BuildkitVersion{Package: "github.com/kiln-build/kiln", Version: apiVersion, Revision: "kiln " + s.o.Version}
}

// ListWorkers gives the one worker that there is.
func (s *Server) ListWorkers(_ context.Context, req *controlapi.ListWorkersRequest) (*controlapi.ListWorkersResponse, error) {
	filter, err := parseFilter(req.Filter)
	if err != nil {
		return nil, err
	}
	resp := &controlapi.ListWorkersResponse{}
	for _, w := range s.workers() {
		if filter.Match(workerFields(w)) {
			resp.Record = append(resp.Record, w)
		}
	}
	return resp, nil
}

func (s *Server) workers() []*types.WorkerRecord {
	host, _ := os.Hostname()
	return []*types.WorkerRecord{{
		ID: s.workerID,
		Labels: map[string]string{
			"org.mobyproject.buildkit.worker.executor":    "kiln",
			"org.mobyproject.buildkit.worker.hostname":    host,
			"org.mobyproject.buildkit.worker.network":     "host",
			"org.mobyproject.buildkit.worker.snapshotter": "kiln",
		},
		Platforms:       pb.PlatformsFromSpec([]ocispecs.Platform{platforms.Normalize(platforms.DefaultSpec())}),
		BuildkitVersion: s.version(),
	}}
}

// workerID gives the name of a state folder's worker, which it gets when it is
// first served.
func workerID(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err == nil && len(data) > 0 {
		return strings.TrimSpace(string(data)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading the worker's id: %w", err)
	}
	id := strings.ToLower(rand.Text())
	if err := os.WriteFile(file, []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("writing the worker's id: %w", err)
	}
	return id, nil
}

// DiskUsage lists what the state folder holds.
func (s *Server) DiskUsage(ctx context.Context, req *controlapi.DiskUsageRequest) (*controlapi.DiskUsageResponse, error) {
	filter, err := parseFilter(req.Filter)
	if err != nil {
		return nil, err
	}
	all, err := s.engine.Usage(ctx)
	if err != nil {
		return nil, err
	}
	resp := &controlapi.DiskUsageResponse{}
	for _, u := range all {
		if req.AgeLimit > 0 && s.o.Clock().Sub(u.LastUsed) < time.Duration(req.AgeLimit) {
			continue
		}
		if filter.Match(usageFields(u)) {
			resp.Record = append(resp.Record, usageRecord(u))
		}
	}
	return resp, nil
}

// Prune collects, and tells what went.
func (s *Server) Prune(req *controlapi.PruneRequest, stream controlapi.Control_PruneServer) error {
	filter, err := parseFilter(req.Filter)
	if err != nil {
		return err
	}
	if req.MinFreeSpace > 0 {
		return fault.New(codes.Unimplemented, "pruning to a minimum of free space is not supported by kiln")
	}
	o := cache.PruneOptions{All: req.All, KeepDuration: time.Duration(req.KeepDuration), MaxUsed: req.MaxUsedSpace}
	if o.MaxUsed == 0 {
		o.MaxUsed = req.ReservedSpace
	}
	if len(req.Filter) > 0 {
		o.Filter = func(u cache.Usage) bool { return filter.Match(usageFields(u)) }
	}
	gone, err := s.engine.Prune(stream.Context(), o)
	if err != nil {
		return err
	}
	if req.All && len(req.Filter) == 0 {
		if err := s.mirrors.Prune(o.KeepDuration); err != nil {
			return err
		}
	}
	for _, u := range gone {
		if err := stream.Send(usageRecord(u)); err != nil {
			return err
		}
	}
	return nil
}

func usageRecord(u cache.Usage) *controlapi.UsageRecord {
	r := &controlapi.UsageRecord{
		ID: u.ID, InUse: u.InUse, Size: u.Size, Parents: u.Parents, CreatedAt: timestamppb.New(u.Created),
		UsageCount: int64(u.Uses), Description: u.Description, RecordType: u.Kind, Shared: u.Shared,
		Mutable: u.Kind == cacheMount,
	}
	if !u.LastUsed.IsZero() {
		r.LastUsedAt = timestamppb.New(u.LastUsed)
	}
	return r
}

// cacheMount is the kind of what steps write to and no record leads to.
const cacheMount = "exec.cachemount"

// parseFilter reads filters in containerd's language; one of them has to hold.
func parseFilter(list []string) (filters.Filter, error) {
	f, err := filters.ParseAll(list...)
	if err != nil {
		return nil, fault.New(codes.InvalidArgument, fmt.Sprintf("failed to parse filter: %v", err))
	}
	return f, nil
}

// usageFields are what filters can ask of a record.
func usageFields(u cache.Usage) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		flag := func(b bool) (string, bool) { return "", b }
		switch path[0] {
		case "id":
			return u.ID, true
		case "parents", "parent":
			return strings.Join(u.Parents, ";"), len(u.Parents) > 0
		case "description":
			return u.Description, u.Description != ""
		case "type":
			return u.Kind, u.Kind != ""
		case "inuse":
			return flag(u.InUse)
		case "mutable":
			return flag(u.Kind == cacheMount)
		case "immutable":
			return flag(u.Kind != cacheMount)
		case "shared":
			return flag(u.Shared)
		case "private":
			return flag(!u.Shared)
		}
		return "", false
	})
}

// workerFields are what filters can ask of a worker.
func workerFields(w *types.WorkerRecord) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		switch {
		case len(path) == 1 && path[0] == "id":
			return w.ID, true
		case len(path) > 1 && path[0] == "labels":
			v, ok := w.Labels[strings.Join(path[1:], ".")]
			return v, ok
		}
		return "", false
	})
}
