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
	controlapi "github.com/moby/buildkit/api/services/control"
	types "github.com/moby/buildkit/api/types"
	dockerfileversion "github.com/moby/buildkit/frontend/dockerfile/version"
	"github.com/moby/buildkit/session/grpchijack"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/worker"
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
	return &types.BuildkitVersion{
		Package: "github.com/kiln-build/kiln", Version: apiVersion, Revision: "kiln " + s.o.Version,
		DockerfileVersion: dockerfileversion.Version(),
	}
}

// ListWorkers gives the one worker that there is.
func (s *Server) ListWorkers(_ context.Context, req *controlapi.ListWorkersRequest) (*controlapi.ListWorkersResponse, error) {
	filter, err := parseFilter(req.Filter)
	if err != nil {
		return nil, err
	}
	resp := &controlapi.ListWorkersResponse{}
	policies, err := s.policies()
	if err != nil {
		return nil, err
	}
	devices, err := s.engine.Devices()
	if err != nil {
		return nil, err
	}
	for _, w := range s.workers() {
		w.GCPolicy = policies
		for _, d := range devices {
			w.CDIDevices = append(w.CDIDevices, &types.CDIDevice{Name: d.Name, AutoAllow: d.Allowed, Annotations: d.Annotations})
		}
		if filter.Match(workerFields(w)) {
			resp.Record = append(resp.Record, w)
		}
	}
	return resp, nil
}

// policies are the rules of collecting.
func (s *Server) policies() ([]*types.GCPolicy, error) {
	list, err := s.engine.Policies()
	if err != nil {
		return nil, err
	}
	out := make([]*types.GCPolicy, len(list))
	for i, p := range list {
		out[i] = &types.GCPolicy{
			All: p.All, KeepDuration: int64(p.KeepDuration.Duration), Filters: p.Filters,
			ReservedSpace: p.ReservedSpace.Bytes, MaxUsedSpace: p.MaxUsedSpace.Bytes, MinFreeSpace: p.MinFreeSpace.Bytes,
		}
	}
	return out, nil
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
		Platforms:       pb.PlatformsFromSpec(worker.Platforms()),
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
	filter, err := usageFilter(req.Filter)
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
		if filter == nil || filter(u) {
			resp.Record = append(resp.Record, usageRecord(u))
		}
	}
	return resp, nil
}

// Prune collects, and tells what went.
func (s *Server) Prune(req *controlapi.PruneRequest, stream controlapi.Control_PruneServer) error {
	filter, err := usageFilter(req.Filter)
	if err != nil {
		return err
	}
	gone, err := s.engine.Prune(stream.Context(), cache.PruneOptions{
		All: req.All, KeepDuration: time.Duration(req.KeepDuration),
		MaxUsed: req.MaxUsedSpace, MinFree: req.MinFreeSpace, Reserved: req.ReservedSpace, Filter: filter,
	})
	if err != nil {
		return err
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
		Mutable: u.Mutable(),
	}
	if !u.LastUsed.IsZero() {
		r.LastUsedAt = timestamppb.New(u.LastUsed)
	}
	return r
}

// usageFilter reads filters of records; none is nil.
func usageFilter(list []string) (func(cache.Usage) bool, error) {
	if len(list) == 0 {
		return nil, nil
	}
	f, err := kiln.UsageFilter(list)
	if err != nil {
		return nil, fault.New(codes.InvalidArgument, err.Error())
	}
	return f, nil
}

// parseFilter reads filters in containerd's language; one of them has to hold.
func parseFilter(list []string) (filters.Filter, error) {
	f, err := filters.ParseAll(list...)
	if err != nil {
		return nil, fault.New(codes.InvalidArgument, fmt.Sprintf("failed to parse filter: %v", err))
	}
	return f, nil
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
