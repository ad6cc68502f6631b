package llb

import (
	"fmt"
	"strings"

	"github.com/moby/buildkit/solver/pb"
)

// Name is the vertex's name for people: that of its Meta, or else what it does.
func (v *Vertex) Name() string {
	if v.meta.Name != "" {
		return v.meta.Name
	}
	return v.Describe()
}

// Kind is the kind of op in one word: "source", "exec", "file", "merge", "diff",
// "build" or "passthrough".
func (v *Vertex) Kind() string {
	switch v.op.Op.(type) {
	case *pb.Op_Source:
		return "source"
	case *pb.Op_Exec:
		return "exec"
	case *pb.Op_File:
		return "file"
	case *pb.Op_Merge:
		return "merge"
	case *pb.Op_Diff:
		return "diff"
	case *pb.Op_Build:
		return "build"
	default:
		return "passthrough"
	}
}

// Describe says in one line what the vertex does.
func (v *Vertex) Describe() string {
	switch o := v.op.Op.(type) {
	case *pb.Op_Source:
		return o.Source.Identifier
	case *pb.Op_Exec:
		return strings.Join(o.Exec.Meta.Args, " ")
	case *pb.Op_File:
		lines := make([]string, len(o.File.Actions))
		for i, a := range o.File.Actions {
			lines[i] = describeAction(a)
		}
		return strings.Join(lines, ", ")
	case *pb.Op_Merge:
		return fmt.Sprintf("merge of %d", len(o.Merge.Inputs))
	case *pb.Op_Diff:
		return "diff"
	case *pb.Op_Build:
		return "build"
	case *pb.Op_Passthrough:
		return "passthrough " + o.Passthrough.Id
	default:
		return "unknown"
	}
}

func describeAction(a *pb.FileAction) string {
	switch a := a.Action.(type) {
	case *pb.FileAction_Copy:
		return fmt.Sprintf("copy %s %s", a.Copy.Src, a.Copy.Dest)
	case *pb.FileAction_Mkdir:
		return "mkdir " + a.Mkdir.Path
	case *pb.FileAction_Mkfile:
		return "mkfile " + a.Mkfile.Path
	case *pb.FileAction_Symlink:
		return fmt.Sprintf("symlink %s -> %s", a.Symlink.Newpath, a.Symlink.Oldpath)
	case *pb.FileAction_Rm:
		return "rm " + a.Rm.Path
	default:
		return "unknown"
	}
}
