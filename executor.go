package kiln

import (
	"context"
	"errors"
	"os"
	"sync"

	"github.com/kiln-build/kiln/worker/executor"
)

// executor gives kiln's own runtime, or the OCI runtime that the configuration names.
func (e *Engine) executor() (executor.Executor, error) {
	o := executor.Options{
		Dir:          e.cache.Path("tmp", "executor"),
		CgroupParent: e.config.Worker.OCI.CgroupParent,
		Nameservers:  e.config.DNS.Nameservers, SearchDomains: e.config.DNS.SearchDomains, DNSOptions: e.config.DNS.Options,
	}
	binary := e.config.Worker.OCI.Binary
	if binary == "" {
		native := &sandboxes{options: o}
		e.close = native.Close
		return native, nil
	}
	if err := os.MkdirAll(o.Dir, 0o711); err != nil {
		return nil, err
	}
	runtime, err := executor.NewOCI(o, binary)
	if err != nil {
		return nil, err
	}
	e.close = func() error { return errors.Join(runtime.Close(), os.RemoveAll(o.Dir)) }
	return runtime, nil
}

// sandboxes are kiln's own executor, made when the first process is to run: its
// folders, cgroups and namespaces take a tenth of the time of a build that finds
// everything cached, and such a build runs none.
type sandboxes struct {
	options executor.Options

	mu     sync.Mutex
	native *executor.Native // nil before the first process
}

var (
	_ executor.Executor = (*sandboxes)(nil)
	_ executor.Enterer  = (*sandboxes)(nil)
	_ executor.Viewer   = (*sandboxes)(nil)
)

// made gives the executor. One that could not be made is tried again.
func (s *sandboxes) made() (*executor.Native, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.native != nil {
		return s.native, nil
	}
	if err := os.MkdirAll(s.options.Dir, 0o711); err != nil {
		return nil, err
	}
	native, err := executor.New(s.options)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.options.Dir))
	}
	s.native = native
	return native, nil
}

// Run makes sandboxes an executor.Executor.
func (s *sandboxes) Run(ctx context.Context, spec executor.Spec) error {
	native, err := s.made()
	if err != nil {
		return err
	}
	return native.Run(ctx, spec)
}

// Enter makes it an executor.Enterer.
func (s *sandboxes) Enter(ctx context.Context, id string, spec executor.Spec) error {
	native, err := s.made()
	if err != nil {
		return err
	}
	return native.Enter(ctx, id, spec)
}

// View makes it an executor.Viewer.
func (s *sandboxes) View(m executor.Mount) (*os.File, error) {
	native, err := s.made()
	if err != nil {
		return nil, err
	}
	return native.View(m)
}

// Close frees what was made. Nothing may be running.
func (s *sandboxes) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.native == nil {
		return nil
	}
	return errors.Join(s.native.Close(), os.RemoveAll(s.options.Dir))
}
