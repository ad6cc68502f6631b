package llb

import (
	"errors"
	"fmt"

	"github.com/moby/buildkit/solver/pb"
)

var errNilOp = errors.New("llb: nil op")

// check says whether op is well formed, by itself: whether every message that its
// kind needs is there and every index in it is in range. It gives the number of
// its outputs. The rules are BuildKit's, with two that it leaves to luck: output
// numbers of an exec are those of its order of mounts, and an action of a file op
// reads earlier actions only.
func check(op *pb.Op) (outputs int, err error) {
	n := len(op.Inputs)
	switch o := op.Op.(type) {
	case *pb.Op_Source:
		return 1, checkSource(o.Source, n)
	case *pb.Op_Exec:
		return checkExec(o.Exec, n)
	case *pb.Op_File:
		return checkFile(o.File, n)
	case *pb.Op_Merge:
		return 1, checkMerge(o.Merge, n)
	case *pb.Op_Diff:
		return 1, checkDiff(o.Diff, n)
	case *pb.Op_Build:
		return 1, checkBuild(o.Build, n)
	case *pb.Op_Passthrough:
		return checkPassthrough(o.Passthrough, n)
	case nil:
		return 0, errors.New("an op of no kind, or of one that is not known here")
	default:
		return 0, fmt.Errorf("an op of the unknown kind %T", o)
	}
}

func checkSource(o *pb.SourceOp, n int) error {
	switch {
	case o == nil:
		return errors.New("source op without a body")
	case o.Identifier == "":
		return errors.New("source op without an identifier")
	case n != 0:
		return fmt.Errorf("source op with %d inputs; it has none", n)
	}
	return nil
}

func checkExec(o *pb.ExecOp, n int) (outputs int, err error) {
	switch {
	case o == nil:
		return 0, errors.New("exec op without a body")
	case o.Meta == nil:
		return 0, errors.New("exec op without meta")
	case len(o.Meta.Args) == 0:
		return 0, errors.New("exec op without arguments")
	case pb.NetMode_name[int32(Unproxied(o.Network))] == "":
		return 0, fmt.Errorf("exec op with the unknown network mode %d", o.Network)
	case pb.SecurityMode_name[int32(o.Security)] == "":
		return 0, fmt.Errorf("exec op with the invalid security mode %d", o.Security)
	case hasNil(o.Meta.ExtraHosts) || hasNil(o.Meta.Ulimit) || hasNil(o.Secretenv) || hasNil(o.CdiDevices):
		return 0, errors.New("exec op with an empty element in a list")
	}
	root := false
	for i, m := range o.Mounts {
		if err := checkMount(m, n); err != nil {
			return 0, fmt.Errorf("exec op: mount %d: %w", i, err)
		}
		if m.Dest == pb.RootMount {
			if root {
				return 0, errors.New("exec op with two mounts at /")
			}
			if m.MountType != pb.MountType_BIND {
				return 0, fmt.Errorf("exec op with a mount of type %s at /", m.MountType)
			}
			root = true
		}
		if !IsOutput(m) {
			continue
		}
		if m.Output != int64(outputs) {
			return 0, fmt.Errorf("exec op: mount %d says that it is output %d; in the order of mounts it is output %d", i, m.Output, outputs)
		}
		outputs++
	}
	if !root {
		return 0, errors.New("exec op without a mount at /")
	}
	return outputs, nil
}

// IsOutput reports whether what a step leaves in a mount is an output of its vertex.
func IsOutput(m *pb.Mount) bool {
	return m.MountType == pb.MountType_BIND && m.Output != int64(pb.SkipOutput)
}

func checkMount(m *pb.Mount, n int) error {
	if m == nil {
		return errors.New("empty")
	}
	if m.Dest == "" {
		return errors.New("no destination")
	}
	if err := checkInput(m.Input, n); err != nil {
		return err
	}
	switch m.MountType {
	case pb.MountType_BIND, pb.MountType_TMPFS:
	case pb.MountType_CACHE:
		if m.CacheOpt == nil {
			return errors.New("cache mount without its options")
		}
		if pb.CacheSharingOpt_name[int32(m.CacheOpt.Sharing)] == "" {
			return fmt.Errorf("cache mount with the unknown sharing mode %d", m.CacheOpt.Sharing)
		}
	case pb.MountType_SECRET:
		if m.SecretOpt == nil {
			return errors.New("secret mount without its options")
		}
	case pb.MountType_SSH:
		if m.SSHOpt == nil {
			return errors.New("ssh mount without its options")
		}
	default:
		return fmt.Errorf("unknown mount type %d", m.MountType)
	}
	if pb.MountContentCache_name[int32(m.ContentCache)] == "" {
		return fmt.Errorf("unknown content cache mode %d", m.ContentCache)
	}
	return nil
}

func checkFile(o *pb.FileOp, n int) (outputs int, err error) {
	if o == nil {
		return 0, errors.New("file op without a body")
	}
	if len(o.Actions) == 0 {
		return 0, errors.New("file op without actions")
	}
	seen := make(map[int64]bool)
	for i, a := range o.Actions {
		// What an action may read: the op's inputs and the actions before it.
		if err := checkAction(a, n+i); err != nil {
			return 0, fmt.Errorf("file op: action %d: %w", i, err)
		}
		if a.Output == int64(pb.SkipOutput) {
			continue
		}
		if a.Output < 0 || a.Output >= int64(len(o.Actions)) || seen[a.Output] {
			return 0, fmt.Errorf("file op: action %d: output number %d is out of range or taken", i, a.Output)
		}
		seen[a.Output] = true
	}
	if len(seen) == 0 {
		return 0, errors.New("file op without outputs")
	}
	for i := range len(seen) {
		if !seen[int64(i)] {
			return 0, fmt.Errorf("file op has %d outputs, and none with number %d", len(seen), i)
		}
	}
	return len(seen), nil
}

func checkAction(a *pb.FileAction, n int) error {
	if a == nil {
		return errors.New("empty")
	}
	if err := checkInput(a.Input, n); err != nil {
		return err
	}
	if err := checkInput(a.SecondaryInput, n); err != nil {
		return fmt.Errorf("secondary %w", err)
	}
	var owner *pb.ChownOpt
	var body bool
	switch o := a.Action.(type) {
	case *pb.FileAction_Copy:
		owner, body = o.Copy.GetOwner(), o.Copy != nil
	case *pb.FileAction_Mkfile:
		owner, body = o.Mkfile.GetOwner(), o.Mkfile != nil
	case *pb.FileAction_Mkdir:
		owner, body = o.Mkdir.GetOwner(), o.Mkdir != nil
	case *pb.FileAction_Symlink:
		owner, body = o.Symlink.GetOwner(), o.Symlink != nil
	case *pb.FileAction_Rm:
		body = o.Rm != nil
	default:
		return errors.New("no action, or one of an unknown kind")
	}
	if !body {
		return errors.New("without a body")
	}
	for _, u := range []*pb.UserOpt{owner.GetUser(), owner.GetGroup()} {
		named, ok := u.GetUser().(*pb.UserOpt_ByName)
		if !ok {
			continue
		}
		if named.ByName == nil {
			return errors.New("owner by name without a name")
		}
		// Scratch has no /etc/passwd, so -1 is no choice here.
		if in := named.ByName.Input; in < 0 || in >= int64(n) {
			return fmt.Errorf("owner %q: input index %d is not one of the %d that the action may read", named.ByName.Name, in, n)
		}
	}
	return nil
}

func checkMerge(o *pb.MergeOp, n int) error {
	if o == nil {
		return errors.New("merge op without a body")
	}
	if len(o.Inputs) != n {
		return fmt.Errorf("merge op names %d inputs and has %d", len(o.Inputs), n)
	}
	if n == 0 {
		return errors.New("merge op without inputs")
	}
	for i, in := range o.Inputs {
		if in == nil || in.Input < 0 || in.Input >= int64(n) {
			return fmt.Errorf("merge op: input index %d is out of range at place %d", in.GetInput(), i)
		}
	}
	return nil
}

func checkDiff(o *pb.DiffOp, n int) error {
	if o == nil {
		return errors.New("diff op without a body")
	}
	if o.Lower == nil || o.Upper == nil {
		return errors.New("diff op without a lower or upper side")
	}
	used := 0
	for _, in := range []int64{o.Lower.Input, o.Upper.Input} {
		if err := checkInput(in, n); err != nil {
			return fmt.Errorf("diff op: %w", err)
		}
		if in != int64(pb.Empty) {
			used++
		}
	}
	// Both sides may name one input where they are the same edge.
	if n > used || (used > 0 && n == 0) {
		return fmt.Errorf("diff op names %d inputs and has %d", used, n)
	}
	return nil
}

func checkBuild(o *pb.BuildOp, n int) error {
	if o == nil {
		return errors.New("build op without a body")
	}
	if o.Builder != int64(pb.LLBBuilder) {
		return fmt.Errorf("build op with builder %d; only LLB (%d) is known", o.Builder, pb.LLBBuilder)
	}
	for name, in := range o.Inputs {
		if in == nil || in.Input < 0 || in.Input >= int64(n) {
			return fmt.Errorf("build op: input %q has index %d, out of range", name, in.GetInput())
		}
	}
	return nil
}

func checkPassthrough(o *pb.PassthroughOp, n int) (outputs int, err error) {
	switch {
	case o == nil:
		return 0, errors.New("passthrough op without a body")
	case o.Id == "":
		return 0, errors.New("passthrough op without an id")
	case len(o.Outputs) == 0:
		return 0, errors.New("passthrough op without outputs")
	}
	for i, in := range o.Outputs {
		if in < 0 || in >= int64(n) {
			return 0, fmt.Errorf("passthrough op: output %d is input %d, out of range", i, in)
		}
	}
	return len(o.Outputs), nil
}

// checkInput accepts an index below n, and scratch.
func checkInput(i int64, n int) error {
	if i < int64(pb.Empty) || i >= int64(n) {
		return fmt.Errorf("input index %d is not below %d", i, n)
	}
	return nil
}

func hasNil[T any](list []*T) bool {
	for _, e := range list {
		if e == nil {
			return true
		}
	}
	return false
}
