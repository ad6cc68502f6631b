package dockerfile

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/solver/pb"
)

// What a file action says where it leaves a mode or a time as it was.
const (
	keepMode = -1
	keepTime = -1
)

// copyAction is one copy of a file vertex in the making.
type copyAction struct {
	from *fsys
	*pb.FileActionCopy
}

// copied is base with copies made onto it, one after the other, in one vertex.
func copied(base *fsys, copies []copyAction, meta llb.Meta) *fsys {
	return &fsys{make: func() (llb.Edge, error) {
		var f llb.Files
		e, err := base.get()
		if err != nil {
			return llb.Edge{}, err
		}
		state := f.From(e)
		for _, c := range copies {
			if err := checkOwner(c.Owner, e, meta); err != nil {
				return llb.Edge{}, err
			}
			from, err := c.from.get()
			if err != nil {
				return llb.Edge{}, err
			}
			state = state.Copy(f.From(from), c.FileActionCopy)
		}
		return output(f.Vertex([]llb.FileState{state}, llb.WithMeta(meta)))
	}}
}

// withFolder is base with a folder made in it.
func withFolder(base *fsys, mkdir *pb.FileActionMkDir, meta llb.Meta) *fsys {
	return &fsys{make: func() (llb.Edge, error) {
		var f llb.Files
		e, err := base.get()
		if err != nil {
			return llb.Edge{}, err
		}
		if err := checkOwner(mkdir.Owner, e, meta); err != nil {
			return llb.Edge{}, err
		}
		return output(f.Vertex([]llb.FileState{f.From(e).Mkdir(mkdir)}, llb.WithMeta(meta)))
	}}
}

// inlineFile is a file system of one file, from a heredoc.
func inlineFile(name string, mode int32, data string) *fsys {
	return &fsys{make: func() (llb.Edge, error) {
		var f llb.Files
		state := f.From(llb.Edge{}).Mkfile(&pb.FileActionMkFile{
			Path:      cleanAbs(name),
			Mode:      mode,
			Data:      []byte(data),
			Timestamp: keepTime,
		})
		return output(f.Vertex([]llb.FileState{state}, llb.WithName("[internal] preparing inline document")))
	}}
}

// parseOwner reads an owner as --chown and USER write it: "user", "user:group",
// names or numbers.
func parseOwner(s string) *pb.ChownOpt {
	user, group, hasGroup := strings.Cut(s, ":")
	o := &pb.ChownOpt{User: parseUser(user)}
	if hasGroup {
		o.Group = parseUser(group)
	}
	return o
}

// checkOwner refuses an owner by name where there are no files to find the name in:
// on scratch, and with --link, which reads nothing of what is below.
func checkOwner(o *pb.ChownOpt, base llb.Edge, meta llb.Meta) error {
	if !base.IsScratch() {
		return nil
	}
	for _, u := range []*pb.UserOpt{o.GetUser(), o.GetGroup()} {
		n := u.GetByName()
		if n == nil {
			continue
		}
		e := &Error{
			Err:  fmt.Errorf("owner %q: there is no /etc/passwd and /etc/group to find the name in, as nothing of a base is read here", n.Name),
			Hint: "give the owner as numbers",
		}
		for _, l := range meta.Locations {
			e.File = l.File
			e.Lines = append(e.Lines, Lines{l.Start, l.End})
		}
		return e
	}
	return nil
}

func parseUser(s string) *pb.UserOpt {
	n, err := strconv.ParseInt(s, 10, 32)
	// An empty name is the default, root.
	if err == nil || s == "root" || s == "" {
		return &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: uint32(n)}}
	}
	return &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: s}}}
}

// absPath makes p absolute and clean. Where keepSlash is set a "/" or "/." at the
// end stays, as it says that a copy's target is a folder.
func absPath(parent, p string, keepSlash bool) string {
	out := path.Clean(p)
	if !path.IsAbs(out) {
		out = path.Join("/", parent, out)
	}
	if !keepSlash {
		return out
	}
	if strings.HasSuffix(p, "/") && !strings.HasSuffix(out, "/") {
		return out + "/"
	}
	if strings.HasSuffix(p, "/.") {
		if out != "/" {
			out += "/"
		}
		return out + "."
	}
	return out
}

func cleanAbs(p string) string { return absPath("/", p, false) }
