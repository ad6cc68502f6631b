package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/worker"
)

// Containers is what a bridge must be besides for containers.
type Containers interface {
	// NewContainer makes one; ctx is its life as well.
	NewContainer(ctx context.Context, spec worker.ContainerSpec) (*worker.Container, error)
	// At gives the file system of a chain.
	At(chain cache.ChainID) frontend.Ref
}

// chained is what the bridge's file systems are besides.
type chained interface{ Chain() cache.ChainID }

// maxContainers bounds how many containers one frontend may have at once.
const maxContainers = 1000

// containers are those of one function, by the names that it gave them.
type containers struct {
	mu    sync.Mutex // guards what is below
	byID  map[string]*worker.Container
	ended bool // takes no more
}

// add takes a container, or reports why not.
func (c *containers) add(id string, made *worker.Container) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended:
		return fault.New(codes.FailedPrecondition, "the build function has returned before")
	case c.byID[id] != nil:
		return fault.New(codes.AlreadyExists, fmt.Sprintf("Container %s already exists", id))
	case len(c.byID) >= maxContainers:
		return fault.New(codes.ResourceExhausted, fmt.Sprintf("the frontend holds more than %d containers", maxContainers))
	}
	if c.byID == nil {
		c.byID = make(map[string]*worker.Container)
	}
	c.byID[id] = made
	return nil
}

func (c *containers) find(id string) (*worker.Container, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	made, ok := c.byID[id]
	if !ok {
		return nil, fault.New(codes.NotFound, fmt.Sprintf("container %q previously released or not created", id))
	}
	return made, nil
}

func (c *containers) remove(id string) (*worker.Container, error) {
	made, err := c.find(id)
	c.mu.Lock()
	delete(c.byID, id)
	c.mu.Unlock()
	return made, err
}

// end releases all.
func (c *containers) end() {
	c.mu.Lock()
	left := c.byID
	c.byID, c.ended = nil, true
	c.mu.Unlock()
	for _, made := range left {
		made.Release() // the processes that this ends have nobody any more who would ask why
	}
}

// NewContainer makes a container of results and other mounts.
func (f *Function) NewContainer(ctx context.Context, req *gwpb.NewContainerRequest) (*gwpb.NewContainerResponse, error) {
	maker, ok := f.engine().(Containers)
	if !ok {
		return nil, fault.New(codes.Unimplemented, "containers cannot be made here")
	}
	spec := worker.ContainerSpec{Network: req.Network, Hostname: req.Hostname, ExtraHosts: req.ExtraHosts, Platform: req.Platform}
	rooted := false
	for i, m := range req.Mounts {
		switch {
		case m == nil:
			return nil, fault.New(codes.InvalidArgument, fmt.Sprintf("mount %d is nil", i))
		case m.MountType == pb.MountType_SSH && m.SSHOpt == nil:
			return nil, fault.New(codes.InvalidArgument, fmt.Sprintf("SSH mount %q requires options", m.Dest))
		}
		rooted = rooted || m.Dest == pb.RootMount
	}
	if !rooted {
		return nil, fault.New(codes.InvalidArgument, "root mount is required")
	}
	for _, m := range req.Mounts {
		chain, err := f.chain(ctx, m.ResultID)
		if err != nil {
			return nil, fmt.Errorf("failed to find ref %s for %q mount: %w", m.ResultID, m.Dest, err)
		}
		spec.Mounts = append(spec.Mounts, worker.ContainerMount{Mount: m, Chain: chain})
	}
	made, err := maker.NewContainer(f.life(), spec)
	if err != nil {
		return nil, err
	}
	if err := f.containers.add(req.ContainerID, made); err != nil {
		return nil, errors.Join(err, made.Release())
	}
	return &gwpb.NewContainerResponse{}, nil
}

// life gives the context of the build, once call has waited for it.
func (f *Function) life() context.Context {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ctx
}

// chain gives the chain of a result; that of scratch is zero.
func (f *Function) chain(ctx context.Context, id string) (cache.ChainID, error) {
	if id == "" {
		return cache.ChainID{}, nil
	}
	ref, err := f.open(ctx, id)
	if err != nil {
		return cache.ChainID{}, err
	}
	in, ok := ref.(chained)
	if !ok {
		return cache.ChainID{}, errors.New("the result is not in the cache")
	}
	return in.Chain(), nil
}

// ReleaseContainer ends a container.
func (f *Function) ReleaseContainer(_ context.Context, req *gwpb.ReleaseContainerRequest) (*gwpb.ReleaseContainerResponse, error) {
	c, err := f.containers.remove(req.ContainerID)
	if err != nil {
		return nil, err
	}
	return &gwpb.ReleaseContainerResponse{}, c.Release()
}

// files gives the files of a container's mount.
func (f *Function) files(id string, mount int32) (*worker.Files, error) {
	c, err := f.containers.find(id)
	if err != nil {
		return nil, err
	}
	return c.Files(int(mount))
}

// ReadFileContainer reads a file of a container, or a part of it.
func (f *Function) ReadFileContainer(ctx context.Context, req *gwpb.ReadFileRequest) (*gwpb.ReadFileResponse, error) {
	files, err := f.files(req.Ref, req.MountIndex)
	if err != nil {
		return nil, err
	}
	defer files.Close()
	return readFile(ctx, files, req)
}

// ReadDirContainer lists a folder of a container.
func (f *Function) ReadDirContainer(ctx context.Context, req *gwpb.ReadDirRequest) (*gwpb.ReadDirResponse, error) {
	files, err := f.files(req.Ref, req.MountIndex)
	if err != nil {
		return nil, err
	}
	defer files.Close()
	return readDir(ctx, files, req)
}

// StatFileContainer describes a path of a container.
func (f *Function) StatFileContainer(ctx context.Context, req *gwpb.StatFileRequest) (*gwpb.StatFileResponse, error) {
	files, err := f.files(req.Ref, req.MountIndex)
	if err != nil {
		return nil, err
	}
	defer files.Close()
	return statFile(ctx, files, req)
}

// nameLeft gives names to what a failed step has left, under which the function
// can mount it in a container.
func (f *Function) nameLeft(err error) error {
	var failed *worker.StepError
	if !errors.As(err, &failed) {
		return err
	}
	maker, ok := f.engine().(Containers)
	if !ok {
		return err
	}
	name := func(chains []cache.ChainID) ([]string, error) {
		ids := make([]string, len(chains))
		for i, c := range chains {
			if c == (cache.ChainID{}) {
				continue
			}
			var err error
			if ids[i], err = f.put(&reference{left: true, solved: maker.At(c)}); err != nil {
				return nil, err
			}
		}
		return ids, nil
	}
	inputs, full := name(failed.Inputs)
	if full != nil {
		return err
	}
	left, full := name(failed.Left)
	if full != nil {
		return err
	}
	return fault.NewStep(err, failed, inputs, left)
}
