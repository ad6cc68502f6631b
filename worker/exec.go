package worker

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/executor"
	"github.com/kiln-build/kiln/worker/usage"
	"github.com/moby/buildkit/solver/pb"
)

// defaultPath is PATH where a step's environment has none: docker's default.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ProcessError says that a step's process failed.
type ProcessError struct {
	Args []string
	Err  *executor.ExitError
	// Linked says that the process complained of a file with several names.
	Linked bool
}

// Error is BuildKit's wording, which tools and people look for.
func (e *ProcessError) Error() string {
	s := fmt.Sprintf("process %q did not complete successfully: exit code: %d", strings.Join(e.Args, " "), e.Err.Code)
	if e.Err.OOM {
		s += ": cannot allocate memory (the kernel killed a process because the step ran out of memory)"
	}
	return s
}

// Hint says what to do where the cause is known; empty is nothing.
func (e *ProcessError) Hint() string {
	if !e.Linked {
		return ""
	}
	return "the files of layers below have more than one name here, which gzip, bzip2 and xz want a -f for"
}

// Unwrap gives the *executor.ExitError.
func (e *ProcessError) Unwrap() error { return e.Err }

// runExec runs a process, and makes layers of what it wrote.
func (w *Worker) runExec(ctx context.Context, job *solver.Job, op *pb.ExecOp) ([]cache.ChainID, error) {
	if err := entitled(w.of(job), op); err != nil {
		return nil, err
	}
	devices, err := w.devices(job, op)
	if err != nil {
		return nil, err
	}
	spec, err := w.spec(job, op)
	if err != nil {
		return nil, err
	}
	env, err := w.secretEnv(ctx, job, op.Secretenv)
	if err != nil {
		return nil, err
	}
	spec.Env = append(spec.Env, env...)
	m, err := w.mount(ctx, job, op)
	if err != nil {
		return nil, err
	}
	defer m.release()
	spec.Root, spec.Mounts = m.root, m.mounts
	if err := addDevices(&spec, devices); err != nil {
		return nil, err
	}
	p, err := w.proxied(job, op, &spec)
	if err != nil {
		return nil, err
	}
	spec.Measure = w.measure(job)
	complaints := &linkComplaints{w: spec.Stderr}
	spec.Stderr = complaints
	err = w.process(ctx, spec, op.Meta)
	if failed, ok := errors.AsType[*ProcessError](err); ok {
		failed.Linked = complaints.seen
	}
	record := tell(p, job.Log(2))
	if err != nil {
		return nil, m.failed(ctx, op, explainEmulator(platformOf(job.Vertex.Op().Platform), binfmtDir, err))
	}
	outs, err := m.outputs(ctx)
	if err == nil && p != nil {
		if kerr := w.proxies.keep(job.Vertex, outs, record); kerr != nil {
			job.Warn(fmt.Sprintf("what the step fetched will not be known: %v", kerr))
		}
	}
	return outs, err
}

// linkComplaints is an output of a process in which complaints of files with several names
// are noticed, as a layer's have that lie in the pool too.
type linkComplaints struct {
	w    io.Writer
	seen bool // once the process has ended
}

func (c *linkComplaints) Write(p []byte) (int, error) {
	c.seen = c.seen || bytes.Contains(p, []byte(" other link")) || bytes.Contains(p, []byte("more than one hard link"))
	return c.w.Write(p)
}

// measure has a step measured where a build that wants it wants to know; nil is none.
// Those that want the step by its end are told.
func (w *Worker) measure(job *solver.Job) *executor.Measure {
	var m *executor.Measure
	for _, s := range w.of(job) {
		if s.Usage == nil {
			continue
		}
		if m == nil {
			m = &executor.Measure{Used: func(used *usage.Samples) {
				for _, s := range w.of(job) {
					if s.Usage != nil {
						s.Usage.Used(job.Vertex.Digest(), used)
					}
				}
			}}
		}
		m.Fully = m.Fully || s.Usage.Fully
	}
	return m
}

// process runs a process and judges its exit code.
func (w *Worker) process(ctx context.Context, spec executor.Spec, meta *pb.Meta) error {
	err := w.exec.Run(ctx, spec)
	var residue *executor.ResidueError
	if errors.As(err, &residue) {
		return errors.Join(judge(ctx, residue.Exit, meta), residue.Left)
	}
	return judge(ctx, err, meta)
}

// judge says what the end of a process means for its step.
func judge(ctx context.Context, err error, meta *pb.Meta) error {
	var exit *executor.ExitError
	switch {
	case err == nil:
		exit = &executor.ExitError{}
	case !errors.As(err, &exit) && ctx.Err() != nil:
		return err
	case !errors.As(err, &exit):
		// It never ran; BuildKit says it like this all the same.
		return fmt.Errorf("process %q did not complete successfully: %w", strings.Join(meta.Args, " "), err)
	}
	if len(meta.ValidExitCodes) == 0 && exit.Code == 0 && err == nil || slices.Contains(meta.ValidExitCodes, int32(exit.Code)) {
		return nil
	}
	return &ProcessError{Args: meta.Args, Err: exit}
}

// spec makes the process of an op, all but its mounts.
func (w *Worker) spec(job *solver.Job, op *pb.ExecOp) (executor.Spec, error) {
	s, err := processSpec(op)
	if err != nil {
		return s, err
	}
	s.Stdout, s.Stderr = job.Log(1), job.Log(2)
	if r := job.Vertex.Meta().Resources; r != nil {
		s.Resources = executor.Resources{
			Memory: r.Memory, MemorySwap: r.MemorySwap, CPUShares: r.CpuShares, CPUPeriod: r.CpuPeriod,
			CPUQuota: r.CpuQuota, CPUSetCPUs: r.CpusetCpus, CPUSetMems: r.CpusetMems,
		}
	}
	return s, nil
}

// processSpec makes of a process what the op alone says.
func processSpec(op *pb.ExecOp) (executor.Spec, error) {
	meta := op.Meta
	if meta == nil || len(meta.Args) == 0 {
		return executor.Spec{}, errors.New("an exec op without arguments")
	}
	s := executor.Spec{
		ID: "kiln-" + strings.ToLower(rand.Text()), Args: meta.Args, Cwd: meta.Cwd, User: meta.User,
		Hostname: meta.Hostname, Insecure: op.Security == pb.SecurityMode_INSECURE,
		StubsRecursive: meta.RemoveMountStubsRecursive, CgroupParent: meta.CgroupParent,
		Env: append(slices.Clone(meta.Env), proxyEnv(meta.ProxyEnv)...),
	}
	if s.Cwd == "" {
		s.Cwd = "/"
	}
	if !slices.ContainsFunc(s.Env, func(v string) bool { return strings.HasPrefix(v, "PATH=") }) {
		s.Env = append(s.Env, "PATH="+defaultPath)
	}
	switch llb.Unproxied(op.Network) {
	case pb.NetMode_UNSET:
		s.Network = executor.NetworkDefault
	case pb.NetMode_HOST:
		s.Network = executor.NetworkHost
	case pb.NetMode_NONE:
		s.Network = executor.NetworkNone
	default:
		return s, fmt.Errorf("unknown network mode %s", op.Network)
	}
	for _, h := range meta.ExtraHosts {
		ip := net.ParseIP(h.IP)
		if ip == nil {
			return s, fmt.Errorf("failed to parse IP %s", h.IP)
		}
		s.ExtraHosts = append(s.ExtraHosts, executor.HostIP{Host: h.Host, IP: ip})
	}
	for _, u := range meta.Ulimit {
		s.Ulimits = append(s.Ulimits, executor.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	return s, nil
}

// proxyEnv gives the variables that programs read proxies from. They are no part
// of a step's key.
func proxyEnv(p *pb.ProxyEnv) []string {
	var out []string
	for _, v := range []struct{ name, value string }{
		{"http_proxy", p.GetHttpProxy()}, {"https_proxy", p.GetHttpsProxy()}, {"ftp_proxy", p.GetFtpProxy()},
		{"no_proxy", p.GetNoProxy()}, {"all_proxy", p.GetAllProxy()},
	} {
		if v.value != "" {
			out = append(out, strings.ToUpper(v.name)+"="+v.value, v.name+"="+v.value)
		}
	}
	return out
}

// destOf gives where a mount is seen.
func destOf(m *pb.Mount, cwd string) string {
	if path.IsAbs(m.Dest) {
		return path.Clean(m.Dest)
	}
	return path.Join("/", cwd, m.Dest)
}
