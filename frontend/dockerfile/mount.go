package dockerfile

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/system"
)

// mount is a mount of a process, besides its root.
type mount struct {
	from *fsys
	*pb.Mount
	noOutput bool
}

// sortedMounts gives the mounts in the order of their targets, so that one below
// another comes later; then the secrets and agents, as LLB has them.
func (p *process) sortedMounts() []mount {
	files, rest := []mount{}, []mount{}
	for _, m := range p.mounts {
		if m.MountType == pb.MountType_SECRET {
			rest = append(rest, m)
		} else {
			files = append(files, m)
		}
	}
	if p.options.shmSize > 0 {
		shm := llb.Tmpfs("/dev/shm", p.options.shmSize)
		files = append(files, mount{Mount: shm.Mount})
	}
	slices.SortStableFunc(files, func(a, b mount) int { return strings.Compare(a.Dest, b.Dest) })
	return slices.Concat(files, rest, p.ssh)
}

// addMounts is RUN --mount, of every type.
func (l *line) addMounts(c *instructions.RunCommand, p *process) error {
	for i, m := range instructions.GetMounts(c) {
		var err error
		switch m.Type {
		case instructions.MountTypeSecret:
			err = l.mountSecret(m, p, c.Location())
		case instructions.MountTypeSSH:
			err = l.mountSSH(m, p, c.Location())
		default:
			err = l.mountFiles(m, l.step.sources[i], p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mountFiles is a mount of type bind, cache or tmpfs.
func (l *line) mountFiles(m *instructions.Mount, src *stage, p *process) error {
	out := mount{from: l.context, Mount: &pb.Mount{Readonly: m.ReadOnly}}
	if m.From != "" {
		if !src.done {
			return fmt.Errorf("cannot mount from stage %q to %q, stage needs to be defined before current command", m.From, m.Target)
		}
		out.from = src.state.root
	}
	switch m.Type {
	case instructions.MountTypeTmpfs:
		out.from = nil
		out.MountType = pb.MountType_TMPFS
		out.TmpfsOpt = &pb.TmpfsOpt{Size: m.SizeLimit}
	case instructions.MountTypeCache:
		if m.From == "" {
			out.from = nil
		}
		out.MountType = pb.MountType_CACHE
		out.CacheOpt = l.cacheOpt(m)
	default:
		// What the step writes into the files of another stage goes with the step.
		out.noOutput = !m.ReadOnly
	}
	var err error
	if out.Dest, err = l.mountTarget(m.Target); err != nil {
		return err
	}
	if sel := path.Join("/", m.Source); sel != "/" {
		out.Selector = sel
	} else if m.UID != nil || m.GID != nil || m.Mode != nil {
		out.from = ownedFolder(out.from, m)
		out.Selector = "/cache"
	}
	l.markMounted(m, src)
	p.mounts = append(p.mounts, out)
	return nil
}

// markMounted notes what the mount reads of the context or of another stage.
func (l *line) markMounted(m *instructions.Mount, src *stage) {
	name := filepath.ToSlash(m.Source)
	switch {
	case m.From != "":
		src.reads.add(name)
	case m.Type == instructions.MountTypeBind:
		l.reads.add(name)
	}
}

func (l *line) cacheOpt(m *instructions.Mount) *pb.CacheOpt {
	id := m.CacheID
	if id == "" {
		id = path.Clean(m.Target)
	}
	o := &pb.CacheOpt{ID: l.opts.run.cacheScope + "/" + id, Sharing: pb.CacheSharingOpt_SHARED}
	switch m.CacheSharing {
	case instructions.MountSharingPrivate:
		o.Sharing = pb.CacheSharingOpt_PRIVATE
	case instructions.MountSharingLocked:
		o.Sharing = pb.CacheSharingOpt_LOCKED
	}
	return o
}

func (l *line) mountTarget(target string) (string, error) {
	if !system.IsAbsolutePath(filepath.Clean(target)) {
		target = filepath.Join("/", l.stage.dir(), target)
	}
	if target == "/" {
		return "", fmt.Errorf("invalid mount target %q", target)
	}
	return target, nil
}

// ownedFolder is a file system with the folder that a cache with an owner or a mode
// starts as.
func ownedFolder(base *fsys, m *instructions.Mount) *fsys {
	mode := uint64(0o755)
	if m.Mode != nil {
		mode = *m.Mode
	}
	id := func(n *uint64) *pb.UserOpt {
		var v uint64
		if n != nil {
			v = *n
		}
		return &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: uint32(v)}}
	}
	return withFolder(base, &pb.FileActionMkDir{
		Path:      "/cache",
		Mode:      int32(mode & 0o777),
		Owner:     &pb.ChownOpt{User: id(m.UID), Group: id(m.GID)},
		Timestamp: keepTime,
	}, llb.Meta{Name: "[internal] setting cache mount permissions"})
}

// fileOwner reads the owner and mode of a secret or a socket. Where one of them is
// given the others have defaults; where none is, the mode alone has.
func fileOwner(m *instructions.Mount, mode uint32) (uid, gid, perm uint32) {
	perm = mode
	if m.UID != nil {
		uid = uint32(*m.UID)
	}
	if m.GID != nil {
		gid = uint32(*m.GID)
	}
	if m.Mode != nil {
		perm = uint32(*m.Mode)
	}
	return uid, gid, perm
}

// mountSecret is a mount of type secret: a file, a variable, or both.
func (l *line) mountSecret(m *instructions.Mount, p *process, at []parser.Range) error {
	windows := l.stage.platform.OS == "windows"
	target := m.Target
	if windows {
		target = system.ToSlash(target, "windows")
	}
	id := m.CacheID
	if m.Source != "" {
		id = m.Source
	}
	if id == "" {
		if target == "" {
			return errors.New("one of source, target required")
		}
		id = path.Base(target)
	}
	if windows && m.Env == nil && target == "" {
		return fmt.Errorf("secret target is required on Windows, e.g. --mount=type=secret,id=%s,target=C:/path/to/secret", id)
	}
	if windows && target != "" && !system.IsAbs(target, "windows") {
		return fmt.Errorf("secret target %q must be an absolute path with forward slashes on Windows, e.g. --mount=type=secret,id=%s,target=C:/path/to/secret", target, id)
	}
	l.stage.outline.addSecret(id, m.Required, at)
	if m.Env != nil {
		p.secretEnv = append(p.secretEnv, &pb.SecretEnv{ID: id, Name: *m.Env, Optional: !m.Required})
	} else if target == "" {
		target = "/run/secrets/" + path.Base(id)
	}
	if target == "" {
		return nil
	}
	uid, gid, mode := fileOwner(m, 0o400)
	p.mounts = append(p.mounts, mount{Mount: llb.Secret(target, &pb.SecretOpt{
		ID: id, Uid: uid, Gid: gid, Mode: mode, Optional: !m.Required,
	}).Mount})
	return nil
}

// mountSSH is a mount of type ssh: the socket of an agent.
func (l *line) mountSSH(m *instructions.Mount, p *process, at []parser.Range) error {
	if m.Source != "" {
		return errors.New("ssh does not support source")
	}
	name := m.CacheID
	if name == "" {
		name = "default"
	}
	l.stage.outline.addSSH(name, m.Required, at)
	target := m.Target
	if target == "" {
		target = fmt.Sprintf("/run/buildkit/ssh_agent.%d", len(p.ssh))
	}
	uid, gid, mode := fileOwner(m, 0o600)
	p.ssh = append(p.ssh, mount{Mount: llb.SSH(target, &pb.SSHOpt{
		ID: m.CacheID, Uid: uid, Gid: gid, Mode: mode, Optional: !m.Required,
	}).Mount})
	return nil
}
