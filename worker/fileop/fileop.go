// Package fileop works LLB's file operations out on trees.
//
// An operation is a list of actions (copy, mkfile, mkdir, symlink, rm), each on
// top of an input of the vertex or of an earlier action. Run edits the state tree
// of the input, and what differs in the end is the layer: no file system is
// mounted and no file is read, except for what a copy brings from a folder of the
// user's, for archives that are unpacked, and for /etc/passwd where an owner is
// named. What happens at every path (which links are followed, what replaces
// what, whose metadata wins) is as BuildKit's file operations have it, because
// Dockerfiles rely on it.
//
// Select says what a copy takes from its source. It serves the cache key and the
// copy alike, so that a key covers exactly what a copy sees.
package fileop

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/moby/buildkit/solver/pb"
)

// Files moves the contents of files, of which Run knows the entries only. Its
// methods are called one after the other.
type Files interface {
	// Foreign reports whether the files of a vertex's input are not in the pool.
	Foreign(input int) bool
	// Bring begins to make t.To a file of the pool, and Settle waits until all that
	// was begun is done.
	Bring(ctx context.Context, t Transfer) error
	Settle() error
	// Open reads the file e, which is at path of an input of the vertex, or, where
	// input is -1, in the pool.
	Open(ctx context.Context, input int, path string, e tree.Entry) (io.ReadCloser, error)
	// Put makes e the pool's, with data for its content.
	Put(ctx context.Context, e tree.Entry, data []byte) error
	// Unpack gives the tree of an archive; ok is false for a file that is none.
	Unpack(ctx context.Context, a Archive) (u Unpacked, ok bool, err error)
}

// Transfer is a file that is to be in the pool, and where its content is.
type Transfer struct {
	Input int    // of the vertex; -1 is the pool
	Path  string // in the input
	From  tree.Entry
	To    tree.Entry
}

// Archive is a file that may be one, to be unpacked.
type Archive struct {
	Input int // as Open has it
	Path  string
	Entry tree.Entry
	// At is where its tree is to stand, for the tags of the files.
	At string
	// Owner is who shall own all of it; nil are the owners that it says.
	Owner *Owner
}

// Owner is a user and a group id.
type Owner struct{ UID, GID uint32 }

// Unpacked is what is in an archive.
type Unpacked struct {
	Root tree.Entry
	// Implicit are the directories that the archive has no entry for, "" its root.
	Implicit map[string]bool
}

// Output is what one output of an operation is.
type Output struct {
	// Base is the input of the vertex that the output stands on; -1 is scratch.
	Base int
	// Layers are what the operation put on top of it, bottom first: one, or, where
	// an output is made from another, those of that one too.
	Layers []tree.Entry
	// State is the tree that it makes together.
	State tree.Entry
}

// Scratch is the state of the empty chain.
var Scratch = tree.Entry{Kind: tree.Dir, Mode: 0o755}

// Op is an operation that runs.
type Op struct {
	Nodes  tree.Nodes
	Inputs []tree.Entry // the states of the vertex's inputs
	Files  Files
	// Now is the time, in nanoseconds since 1970, of what an action makes new and
	// gives no time.
	Now int64

	actions []*pb.FileAction
	done    []*Output // by action
	// copied are the places that copies took files from, so that a file that is
	// taken twice becomes two files.
	copied []origin
}

// origin is a place in a state.
type origin struct {
	input int
	path  string
}

// Run works out the actions and gives the operation's outputs in order.
func (o *Op) Run(ctx context.Context, actions []*pb.FileAction) ([]Output, error) {
	o.actions, o.done = actions, make([]*Output, len(actions))
	outs := make(map[int64]int)
	for i, a := range actions {
		for _, in := range []int64{a.Input, a.SecondaryInput} {
			if in < -1 || in >= int64(len(o.Inputs)+len(actions)) {
				return nil, fmt.Errorf("invalid input index %d of action %d: there are %d inputs and %d actions", in, i, len(o.Inputs), len(actions))
			}
		}
		if a.Output == -1 {
			continue
		}
		if _, ok := outs[a.Output]; ok {
			return nil, fmt.Errorf("duplicate output %d", a.Output)
		}
		outs[a.Output] = i
	}
	if len(outs) == 0 {
		return nil, fmt.Errorf("no outputs specified")
	}
	result := make([]Output, len(outs))
	for n := range result {
		i, ok := outs[int64(n)]
		if !ok {
			return nil, fmt.Errorf("missing output index %d", n)
		}
		out, err := o.action(ctx, i, nil)
		if err != nil {
			return nil, err
		}
		result[n] = *out
	}
	return result, nil
}

// action gives what an action results in. pending are the actions that wait for it.
func (o *Op) action(ctx context.Context, i int, pending []int) (*Output, error) {
	if o.done[i] != nil {
		return o.done[i], nil
	}
	for _, p := range pending {
		if p == i {
			return nil, fmt.Errorf("action %d is an input of itself", i)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	pending = append(pending, i)
	a := o.actions[i]
	base, err := o.input(ctx, a.Input, pending)
	if err != nil {
		return nil, err
	}
	owner, err := o.owner(ctx, ownerOf(a), pending)
	if err != nil {
		return nil, err
	}
	e := &edit{op: o, Editor: tree.Edit(o.Nodes, base.State)}
	if err := o.apply(ctx, e, a, owner, pending); err != nil {
		// What a transfer has to say comes first: it began earlier.
		if began := o.Files.Settle(); began != nil {
			err = began
		}
		return nil, &ActionError{Action: i, Err: err}
	}
	if err := o.Files.Settle(); err != nil {
		return nil, &ActionError{Action: i, Err: err}
	}
	out := *base
	out.Layers = append([]tree.Entry(nil), base.Layers...)
	if out.State, err = e.Root(); err != nil {
		return nil, err
	}
	// What only later actions read becomes a layer together with what they do.
	if a.Output != -1 {
		below, err := o.committed(ctx, i)
		if err != nil {
			return nil, err
		}
		layer, err := tree.Diff(o.Nodes, below, out.State, tree.ByAddr)
		if err != nil {
			return nil, fmt.Errorf("working out the layer: %w", err)
		}
		out.Layers = append(out.Layers, layer)
	}
	o.done[i] = &out
	return &out, nil
}

// Reached gives, when Run has failed, how far an action came: what it made, or, if
// it is the one that failed, what it stood on; false if neither.
func (o *Op) Reached(i int, failed bool) (Output, bool) {
	if o.done[i] != nil {
		return *o.done[i], true
	}
	if !failed {
		return Output{}, false
	}
	out, err := o.input(context.Background(), o.actions[i].Input, nil) // it was worked out before
	if err != nil {
		return Output{}, false
	}
	return *out, true
}

// committed gives the state on top of which action i's layer comes: that of the
// nearest action below that is an output, or of the input of the vertex.
func (o *Op) committed(ctx context.Context, i int) (tree.Entry, error) {
	in := o.actions[i].Input
	for in >= int64(len(o.Inputs)) && o.actions[in-int64(len(o.Inputs))].Output == -1 {
		in = o.actions[in-int64(len(o.Inputs))].Input
	}
	out, err := o.input(ctx, in, nil)
	if err != nil {
		return tree.Entry{}, err
	}
	return out.State, nil
}

// input gives what an input index of an action stands for.
func (o *Op) input(ctx context.Context, in int64, pending []int) (*Output, error) {
	switch {
	case in < 0:
		return &Output{Base: -1, State: Scratch}, nil
	case in < int64(len(o.Inputs)):
		return &Output{Base: int(in), State: o.Inputs[in]}, nil
	}
	return o.action(ctx, int(in)-len(o.Inputs), pending)
}

func (o *Op) apply(ctx context.Context, e *edit, a *pb.FileAction, owner *Owner, pending []int) error {
	switch act := a.Action.(type) {
	case *pb.FileAction_Copy:
		src, err := o.input(ctx, a.SecondaryInput, pending)
		if err != nil {
			return err
		}
		from := -1
		if a.SecondaryInput < int64(len(o.Inputs)) {
			from = int(a.SecondaryInput)
		}
		return e.copy(ctx, from, src.State, act.Copy, owner)
	case *pb.FileAction_Mkfile:
		return e.mkfile(ctx, act.Mkfile, owner)
	case *pb.FileAction_Mkdir:
		return e.mkdir(act.Mkdir, owner)
	case *pb.FileAction_Symlink:
		return e.symlink(act.Symlink, owner)
	case *pb.FileAction_Rm:
		return e.rm(act.Rm)
	}
	return fmt.Errorf("invalid action type %T", a.Action)
}

// edit is the state that an action changes.
type edit struct {
	*tree.Editor
	op *Op
}

// ActionError says which action of an operation failed.
type ActionError struct {
	Action int
	Err    error
}

func (e *ActionError) Error() string { return e.Err.Error() }
func (e *ActionError) Unwrap() error { return e.Err }

// NotFoundError says that a path that an operation reads is not in its source.
type NotFoundError struct {
	Path string // absolute, as the operation has it
	// Late says that it was found out when the operation ran, as it is where there is
	// nothing in the source at all, or where the operation stands on it too.
	Late bool
}

// Error is BuildKit's wording, which tools look for: it has one of those who ask before
// an operation runs, and that of the kernel.
func (e *NotFoundError) Error() string {
	if e.Late {
		return fmt.Sprintf("%s: %v", e.Path, syscall.ENOENT)
	}
	return fmt.Sprintf("%q: not found", e.Path)
}

// late marks err as found out when an operation ran, if it is a *NotFoundError.
func late(err error) error {
	var missing *NotFoundError
	if errors.As(err, &missing) {
		missing.Late = true
	}
	return err
}
