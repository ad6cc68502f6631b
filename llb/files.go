package llb

import (
	"errors"

	"github.com/moby/buildkit/solver/pb"
)

// Files builds a file op: a list of actions, each of which makes a new state of
// an earlier one. The zero Files is ready for use.
//
//	var f llb.Files
//	s := f.From(base).Mkdir(&pb.FileActionMkDir{Path: "/srv", Mode: 0o755})
//	s = s.Copy(f.From(context), &pb.FileActionCopy{Src: "/site", Dest: "/srv/"})
//	v, err := f.Vertex([]llb.FileState{s})
type Files struct {
	inputs  inputList
	actions []fileAction
	err     error
}

type fileAction struct {
	action      *pb.FileAction
	input, from FileState
	ownerFrom   FileState // whose /etc/passwd names the owner
}

// FileState is a file system between two actions: an edge, or what an action made.
type FileState struct {
	files  *Files
	edge   Edge
	action int // 1 + the action that made it; 0 is the edge
}

// From is the file system that an edge holds; the zero Edge is an empty one.
func (f *Files) From(e Edge) FileState { return FileState{files: f, edge: e} }

// base is the edge that a chain of actions stands on.
func (s FileState) base() FileState {
	for s.action > 0 {
		s = s.files.actions[s.action-1].input
	}
	return s
}

func (s FileState) add(a *pb.FileAction, from FileState) FileState {
	f := s.files
	if from.files != nil && from.files != f {
		f.err = errors.New("llb: a copy between two file ops; make an edge of the source")
	}
	f.actions = append(f.actions, fileAction{action: a, input: s, from: from, ownerFrom: s.base()})
	return FileState{files: f, action: len(f.actions)}
}

// Mkdir makes a directory. Owners by name are looked up in the edge that the
// state stands on, here and in all the actions: the Input of a NamedUserOpt is set
// by Files.
func (s FileState) Mkdir(a *pb.FileActionMkDir) FileState {
	return s.add(&pb.FileAction{Action: &pb.FileAction_Mkdir{Mkdir: a}}, FileState{})
}

// Mkfile writes a file.
func (s FileState) Mkfile(a *pb.FileActionMkFile) FileState {
	return s.add(&pb.FileAction{Action: &pb.FileAction_Mkfile{Mkfile: a}}, FileState{})
}

// Symlink makes a symbolic link.
func (s FileState) Symlink(a *pb.FileActionSymlink) FileState {
	return s.add(&pb.FileAction{Action: &pb.FileAction_Symlink{Symlink: a}}, FileState{})
}

// Rm removes files.
func (s FileState) Rm(a *pb.FileActionRm) FileState {
	return s.add(&pb.FileAction{Action: &pb.FileAction_Rm{Rm: a}}, FileState{})
}

// Copy copies from another state of the same Files, an edge (Files.From) most often.
func (s FileState) Copy(from FileState, a *pb.FileActionCopy) FileState {
	return s.add(&pb.FileAction{Action: &pb.FileAction_Copy{Copy: a}}, from)
}

// Vertex makes the vertex, with one output for each of outputs, which are states
// that actions made.
func (f *Files) Vertex(outputs []FileState, options ...Option) (*Vertex, error) {
	if f.err != nil {
		return nil, f.err
	}
	number := make(map[int]int, len(outputs))
	for i, s := range outputs {
		if s.files != f || s.action == 0 {
			return nil, errors.New("llb: an output of a file op that none of its actions made")
		}
		if _, ok := number[s.action]; ok {
			return nil, errors.New("llb: one action is two outputs of its file op")
		}
		number[s.action] = i
	}
	// The numbers of states follow those of the inputs, which must all be known first.
	f.inputs = inputList{}
	for _, a := range f.actions {
		f.number(a.input)
		f.number(a.from)
	}
	op := &pb.FileOp{Actions: make([]*pb.FileAction, len(f.actions))}
	for i, a := range f.actions {
		p := a.action.CloneVT()
		p.Input, p.SecondaryInput = f.number(a.input), f.number(a.from)
		p.Output = int64(pb.SkipOutput)
		if n, ok := number[i+1]; ok {
			p.Output = int64(n)
		}
		setOwnerInput(p, f.number(a.ownerFrom))
		op.Actions[i] = p
	}
	return makeVertex(&pb.Op{Op: &pb.Op_File{File: op}}, f.inputs.edges, options)
}

// number gives the index by which actions name a state.
func (f *Files) number(s FileState) int64 {
	if s.action > 0 {
		return int64(len(f.inputs.edges) + s.action - 1)
	}
	return f.inputs.index(s.edge)
}

func setOwnerInput(a *pb.FileAction, input int64) {
	var o *pb.ChownOpt
	switch a := a.Action.(type) {
	case *pb.FileAction_Copy:
		o = a.Copy.GetOwner()
	case *pb.FileAction_Mkdir:
		o = a.Mkdir.GetOwner()
	case *pb.FileAction_Mkfile:
		o = a.Mkfile.GetOwner()
	case *pb.FileAction_Symlink:
		o = a.Symlink.GetOwner()
	}
	for _, u := range []*pb.UserOpt{o.GetUser(), o.GetGroup()} {
		if n := u.GetByName(); n != nil {
			n.Input = input
		}
	}
}
