package fileop

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/moby/buildkit/solver/pb"
)

// The files in which names of owners are looked up.
const (
	PasswdPath = "/etc/passwd"
	GroupPath  = "/etc/group"
)

// maxUserFile bounds what is read of such a file.
const maxUserFile = 10 << 20

// ownerOf gives the owner that an action names.
func ownerOf(a *pb.FileAction) *pb.ChownOpt {
	switch act := a.Action.(type) {
	case *pb.FileAction_Copy:
		return act.Copy.GetOwner()
	case *pb.FileAction_Mkfile:
		return act.Mkfile.GetOwner()
	case *pb.FileAction_Mkdir:
		return act.Mkdir.GetOwner()
	case *pb.FileAction_Symlink:
		return act.Symlink.GetOwner()
	}
	return nil
}

// UserFile is a file that an action's owner is looked up in.
type UserFile struct {
	Input int64 // as an action's Input
	Path  string
}

// UserFiles gives the files that the owner of an action is looked up in.
func UserFiles(a *pb.FileAction) []UserFile {
	var out []UserFile
	chown := ownerOf(a)
	if u, ok := chown.GetUser().GetUser().(*pb.UserOpt_ByName); ok && u.ByName != nil {
		out = append(out, UserFile{u.ByName.Input, PasswdPath})
	}
	if g, ok := chown.GetGroup().GetUser().(*pb.UserOpt_ByName); ok && g.ByName != nil {
		out = append(out, UserFile{g.ByName.Input, GroupPath})
	}
	return out
}

// owner finds the ids of an owner. A name that is not in the file, or whose file
// is not there, is root, as with BuildKit.
func (o *Op) owner(ctx context.Context, c *pb.ChownOpt, pending []int) (*Owner, error) {
	if c == nil {
		return nil, nil
	}
	out := new(Owner)
	switch u := c.GetUser().GetUser().(type) {
	case *pb.UserOpt_ByID:
		out.UID, out.GID = u.ByID, u.ByID
	case *pb.UserOpt_ByName:
		ids, err := o.lookup(ctx, u.ByName, PasswdPath, 2, pending)
		if err != nil {
			return nil, err
		}
		if ids != nil {
			out.UID, out.GID = ids[0], ids[1]
		}
	}
	switch g := c.GetGroup().GetUser().(type) {
	case *pb.UserOpt_ByID:
		out.GID = g.ByID
	case *pb.UserOpt_ByName:
		ids, err := o.lookup(ctx, g.ByName, GroupPath, 1, pending)
		if err != nil {
			return nil, err
		}
		if ids != nil {
			out.GID = ids[0]
		}
	}
	return out, nil
}

// lookup reads the numbers after the password on the line of a name.
func (o *Op) lookup(ctx context.Context, name *pb.NamedUserOpt, file string, numbers int, pending []int) ([]uint32, error) {
	if name == nil {
		return nil, fmt.Errorf("invalid nil named user")
	}
	if name.Input < 0 || name.Input >= int64(len(o.Inputs)+len(o.actions)) {
		return nil, fmt.Errorf("invalid user index: %d", name.Input)
	}
	in, err := o.input(ctx, name.Input, pending)
	if err != nil {
		return nil, err
	}
	r, err := tree.Resolve(o.Nodes, in.State, file, true)
	if notThere(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if r.Entry.Kind != tree.File {
		return nil, fmt.Errorf("%s is not a regular file", file)
	}
	if r.Entry.Size > maxUserFile {
		return nil, fmt.Errorf("%s has more than %d bytes", file, maxUserFile)
	}
	from := -1
	if name.Input < int64(len(o.Inputs)) {
		from = int(name.Input)
	}
	f, err := o.Files.Open(ctx, from, r.Path, r.Entry)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ids, err := scanIDs(f, name.Name, numbers)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	return ids, nil
}

// scanIDs finds the first line "name:password:number[:number]…" of a name.
func scanIDs(r io.Reader, name string, numbers int) ([]uint32, error) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20) // a group may have many members
	for s.Scan() {
		fields := strings.Split(strings.TrimSpace(s.Text()), ":")
		if fields[0] != name || len(fields) < 2+numbers {
			continue
		}
		ids := make([]uint32, numbers)
		for i := range ids {
			n, err := strconv.ParseUint(strings.TrimSpace(fields[2+i]), 10, 32)
			if err != nil {
				return nil, fmt.Errorf("the line of %q: %w", name, err)
			}
			ids[i] = uint32(n)
		}
		return ids, nil
	}
	return nil, s.Err()
}
