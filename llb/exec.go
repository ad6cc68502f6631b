package llb

import "github.com/moby/buildkit/solver/pb"

// Exec is a process that a vertex runs. Meta's Args and one mount at "/" are
// needed; the zero value of everything else is BuildKit's default.
type Exec struct {
	Meta      *pb.Meta
	Mounts    []Mount
	Network   pb.NetMode
	Security  pb.SecurityMode
	SecretEnv []*pb.SecretEnv
	Devices   []*pb.CDIDevice
}

// Mount is something that a process sees at a path: Root, Bind, CacheMount, Tmpfs,
// Secret and SSH make the usual ones.
type Mount struct {
	// From is what is mounted; scratch for nothing but what Mount itself says.
	From Edge
	// Mount says the rest. Its Input and Output are set by Exec.Vertex.
	Mount *pb.Mount
	// NoOutput makes what a step writes into a bind mount vanish with the step.
	NoOutput bool
}

// Root is the root file system, writable; what the step leaves of it is an output.
func Root(from Edge) Mount { return Mount{From: from, Mount: &pb.Mount{Dest: pb.RootMount}} }

// ReadOnlyRoot is a root file system that the step cannot write; it is no output.
func ReadOnlyRoot(from Edge) Mount {
	return Mount{From: from, Mount: &pb.Mount{Dest: pb.RootMount, Readonly: true}}
}

// Bind is a read-only mount of the path selector of from.
func Bind(from Edge, selector, dest string) Mount {
	return Mount{From: from, Mount: &pb.Mount{Dest: dest, Selector: selector, Readonly: true}}
}

// BindWritable is a mount that the step may write to. What it leaves is an
// output if keep is true, and vanishes otherwise.
func BindWritable(from Edge, selector, dest string, keep bool) Mount {
	return Mount{From: from, Mount: &pb.Mount{Dest: dest, Selector: selector}, NoOutput: !keep}
}

// CacheMount is a folder that outlives the step, found again by id. It starts as
// the path selector of from.
func CacheMount(id, dest string, sharing pb.CacheSharingOpt, from Edge, selector string) Mount {
	return Mount{From: from, Mount: &pb.Mount{
		Dest: dest, Selector: selector, MountType: pb.MountType_CACHE,
		CacheOpt: &pb.CacheOpt{ID: id, Sharing: sharing},
	}}
}

// Tmpfs is a file system in memory, of at most size bytes where size is not 0.
func Tmpfs(dest string, size int64) Mount {
	return Mount{Mount: &pb.Mount{Dest: dest, MountType: pb.MountType_TMPFS, TmpfsOpt: &pb.TmpfsOpt{Size: size}}}
}

// Secret is a file with a secret of the build's session.
func Secret(dest string, o *pb.SecretOpt) Mount {
	return Mount{Mount: &pb.Mount{Dest: dest, MountType: pb.MountType_SECRET, SecretOpt: o}}
}

// SSH is a socket at which an ssh agent of the build's session answers.
func SSH(dest string, o *pb.SSHOpt) Mount {
	return Mount{Mount: &pb.Mount{Dest: dest, MountType: pb.MountType_SSH, SSHOpt: o}}
}

// OutputOf gives the number of the output that mount i becomes, or -1 where it is none.
func (x *Exec) OutputOf(i int) int {
	if !x.Mounts[i].isOutput() {
		return int(pb.SkipOutput)
	}
	n := 0
	for _, m := range x.Mounts[:i] {
		if m.isOutput() {
			n++
		}
	}
	return n
}

func (m Mount) isOutput() bool {
	return m.Mount.MountType == pb.MountType_BIND && !m.Mount.Readonly && !m.NoOutput
}

// Vertex makes the vertex. Its outputs are the writable bind mounts that do not
// say NoOutput, in their order (OutputOf).
func (x *Exec) Vertex(options ...Option) (*Vertex, error) {
	var inputs inputList
	op := &pb.ExecOp{
		Meta: x.Meta, Network: x.Network, Security: x.Security,
		Secretenv: x.SecretEnv, CdiDevices: x.Devices,
	}
	for i, m := range x.Mounts {
		p := m.Mount.CloneVT()
		p.Input, p.Output = inputs.index(m.From), int64(x.OutputOf(i))
		op.Mounts = append(op.Mounts, p)
	}
	return makeVertex(&pb.Op{Op: &pb.Op_Exec{Exec: op}}, inputs.edges, options)
}
