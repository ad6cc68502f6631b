// Package content serves blobs to BuildKit's clients, by containerd's content
// service: what records of the history name, and what the state folder holds.
//
// Clients read; nobody writes. Blobs that only the history has are listed in its
// namespace alone, as with BuildKit, so that a client who counts what builds have
// left does not count records.
package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/daemon/history"
	"github.com/kiln-build/kiln/daemon/internal/fault"
)

const (
	// historyNamespace is the namespace in which the history's own blobs are listed.
	historyNamespace = "buildkit_history"
	namespaceHeader  = "containerd-namespace"
	// piece is how much of a blob a message holds, and listed how many blobs.
	piece  = 1 << 20
	listed = 100
)

// Service is the content service. History is nil where none is kept.
type Service struct {
	api.UnimplementedContentServer

	Store   *blob.Store
	History *history.Store
}

// Register adds the service to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { api.RegisterContentServer(r, s) }

// open finds a blob.
func (s *Service) open(text string) (io.ReadSeekCloser, int64, error) {
	d := digest.Digest(text)
	if err := d.Validate(); err != nil {
		return nil, 0, fault.New(codes.InvalidArgument, fmt.Sprintf("%q failed validation: %v", text, err))
	}
	if s.History != nil {
		if f, size, err := s.History.OpenBlob(d); err == nil {
			return f, size, nil
		}
	}
	if d.Algorithm() == digest.SHA256 {
		id, err := blob.Parse(text)
		if err != nil {
			return nil, 0, fault.New(codes.InvalidArgument, err.Error())
		}
		f, size, err := s.Store.Open(id)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return f, size, err
		}
	}
	return nil, 0, fault.New(codes.NotFound, fmt.Sprintf("content %s: not found", text))
}

// Info says how large a blob is.
func (s *Service) Info(_ context.Context, req *api.InfoRequest) (*api.InfoResponse, error) {
	f, size, err := s.open(req.Digest)
	if err != nil {
		return nil, err
	}
	return &api.InfoResponse{Info: &api.Info{Digest: req.Digest, Size: size}}, f.Close()
}

// Read sends a blob, or a part of it.
func (s *Service) Read(req *api.ReadContentRequest, stream api.Content_ReadServer) (err error) {
	f, total, err := s.open(req.Digest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	offset, size := req.Offset, req.Size
	if offset < 0 || offset > total || size < 0 || size > total-offset {
		return fault.New(codes.OutOfRange, fmt.Sprintf("read of %d bytes at %d past object length %d bytes", size, offset, total))
	}
	if size == 0 {
		size = total - offset
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	buf := make([]byte, min(size, piece))
	for size > 0 {
		part := buf[:min(size, piece)]
		if _, err := io.ReadFull(f, part); err != nil {
			return fmt.Errorf("reading content %s: %w", req.Digest, err)
		}
		if err := stream.Send(&api.ReadContentResponse{Offset: offset, Data: part}); err != nil {
			return err
		}
		offset, size = offset+int64(len(part)), size-int64(len(part))
	}
	return nil
}

// List sends what blobs there are.
func (s *Service) List(req *api.ListContentRequest, stream api.Content_ListServer) error {
	filter, err := filters.ParseAll(req.Filters...)
	if err != nil {
		return fault.New(codes.InvalidArgument, err.Error())
	}
	var batch []*api.Info
	add := func(d string, size int64) error {
		if !filter.Match(fields(d, size)) {
			return nil
		}
		if batch = append(batch, &api.Info{Digest: d, Size: size}); len(batch) < listed {
			return nil
		}
		err := stream.Send(&api.ListContentResponse{Info: batch})
		batch = nil
		return err
	}
	if err := s.each(namespace(stream.Context()), add); err != nil {
		return err
	}
	if len(batch) == 0 {
		return nil
	}
	return stream.Send(&api.ListContentResponse{Info: batch})
}

func namespace(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	return strings.Join(md.Get(namespaceHeader), "")
}

// each calls fn with the blobs of a namespace.
func (s *Service) each(namespace string, fn func(d string, size int64) error) error {
	if namespace != historyNamespace {
		return s.Store.Each(func(d blob.Digest, size int64) error { return fn(d.String(), size) })
	}
	if s.History == nil {
		return nil
	}
	for _, d := range s.History.Blobs() {
		f, size, err := s.History.OpenBlob(d)
		if err != nil {
			continue // it has just gone
		}
		f.Close()
		if err := fn(d.String(), size); err != nil {
			return err
		}
	}
	return nil
}

// fields are what filters can ask of a blob.
func fields(d string, size int64) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		switch {
		case len(path) == 1 && path[0] == "digest":
			return d, true
		case len(path) == 1 && path[0] == "size":
			return strconv.FormatInt(size, 10), true
		}
		return "", false
	})
}

// ListStatuses gives the writes that are under way: none.
func (s *Service) ListStatuses(context.Context, *api.ListStatusesRequest) (*api.ListStatusesResponse, error) {
	return &api.ListStatusesResponse{}, nil
}

// readOnly refuses what would change something.
func readOnly() error {
	return fault.New(codes.Unimplemented, "the contents of kiln's state folder are not for clients to change")
}

// Update is refused.
func (s *Service) Update(context.Context, *api.UpdateRequest) (*api.UpdateResponse, error) {
	return nil, readOnly()
}

// Write is refused.
func (s *Service) Write(api.Content_WriteServer) error { return readOnly() }
