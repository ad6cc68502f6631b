package journal

import (
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/explain"
)

// compareOps gives the differences of what two steps do.
func (c *comparison) compareOps(s, t *Step) []explain.Reason {
	a, err := t.op()
	if err != nil {
		return nil
	}
	b, err := s.op()
	if err != nil {
		return nil
	}
	var out []explain.Reason
	set := func(name, old, new string) {
		if old != new {
			out = append(out, explain.Reason{Kind: explain.Setting, Name: name, Old: old, New: new})
		}
	}
	switch x, y := a.GetExec(), b.GetExec(); {
	case x != nil && y != nil:
		out = append(out, compareCommands(x.Meta.GetArgs(), y.Meta.GetArgs())...)
		out = append(out, c.compareEnv(x.Meta.GetEnv(), y.Meta.GetEnv())...)
		set("working directory", x.Meta.GetCwd(), y.Meta.GetCwd())
		set("user", x.Meta.GetUser(), y.Meta.GetUser())
		set("host name", x.Meta.GetHostname(), y.Meta.GetHostname())
		set("network", word(x.Network.String()), word(y.Network.String()))
		set("security", word(x.Security.String()), word(y.Security.String()))
		set("cgroup parent", x.Meta.GetCgroupParent(), y.Meta.GetCgroupParent())
		set("limits", ulimits(x.Meta), ulimits(y.Meta))
		set("added hosts", hosts(x.Meta), hosts(y.Meta))
		out = append(out, compareMounts(x.Mounts, y.Mounts)...)
	case a.GetFile() != nil && b.GetFile() != nil:
		out = append(out, compareFileOps(s, t, a.GetFile(), b.GetFile())...)
	}
	set("platform", platform(a.Platform), platform(b.Platform))
	return out
}

func word(s string) string { return strings.ToLower(s) }

func platform(p *pb.Platform) string {
	if p == nil {
		return ""
	}
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}

func ulimits(m *pb.Meta) string {
	var out []string
	for _, u := range m.GetUlimit() {
		out = append(out, u.String())
	}
	return strings.Join(out, ", ")
}

// hosts names the hosts; their addresses are in no key.
func hosts(m *pb.Meta) string {
	var out []string
	for _, h := range m.GetExtraHosts() {
		out = append(out, h.Host)
	}
	return strings.Join(out, ", ")
}

// compareCommands compares command lines, leaving out a shell that both have.
func compareCommands(a, b []string) []explain.Reason {
	if slices.Equal(a, b) {
		return nil
	}
	if len(a) == 3 && len(b) == 3 && slices.Equal(a[:2], b[:2]) {
		a, b = a[2:], b[2:]
	}
	return []explain.Reason{{Kind: explain.Command, Words: compareWords(strings.Join(a, " "), strings.Join(b, " "))}}
}

// compareEnv compares environments by the hashes of their values.
func (c *comparison) compareEnv(a, b []string) []explain.Reason {
	var out []explain.Reason
	for name, change := range changes(byName(a), byName(b)) {
		kind := explain.Environment
		if slices.Contains(c.report.Args, name) {
			kind = explain.Argument
		}
		out = append(out, explain.Reason{Kind: kind, Name: name, Change: change})
	}
	slices.SortFunc(out, func(a, b explain.Reason) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func byName(env []string) map[string]string {
	m := make(map[string]string, len(env))
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		m[name] = value
	}
	return m
}

// changes says of the keys of two maps in whose values they differ, how.
func changes(a, b map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range a {
		if w, ok := b[k]; !ok {
			out[k] = "gone"
		} else if v != w {
			out[k] = "changed"
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			out[k] = "new"
		}
	}
	return out
}

// compareMounts compares mounts by where they are, but for what they bring in:
// that is an input.
func compareMounts(a, b []*pb.Mount) []explain.Reason {
	forms := func(mounts []*pb.Mount) map[string]string {
		m := map[string]string{}
		for _, mnt := range mounts {
			mnt = mnt.CloneVT()
			mnt.Input, mnt.Output = 0, 0
			raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(mnt)
			if err == nil {
				m[mnt.Dest] = string(raw)
			}
		}
		return m
	}
	found := changes(forms(a), forms(b))
	var out []explain.Reason
	for _, dest := range slices.Sorted(maps.Keys(found)) {
		out = append(out, explain.Reason{Kind: explain.Setting, Name: "mount " + dest, Change: found[dest]})
	}
	return out
}

// compareFileOps compares file operations: their instructions by word, and where
// these are alike, what else there is to the actions.
func compareFileOps(s, t *Step, a, b *pb.FileOp) []explain.Reason {
	if old, new := explain.PlaceOf(t.Name).Rest, explain.PlaceOf(s.Name).Rest; old != new {
		return []explain.Reason{{Kind: explain.Command, Words: compareWords(old, new)}}
	}
	var out []explain.Reason
	for i := range min(len(a.Actions), len(b.Actions)) {
		x, y := a.Actions[i], b.Actions[i]
		if m, n := x.GetMkfile(), y.GetMkfile(); m != nil && n != nil && string(m.Data) != string(n.Data) {
			out = append(out, explain.Reason{Kind: explain.Setting, Name: "text of " + n.Path, Change: "changed"})
		}
		if timeOf(x) != timeOf(y) {
			out = append(out, explain.Reason{Kind: explain.Setting, Name: "time of files (SOURCE_DATE_EPOCH)", Change: "changed"})
			break
		}
	}
	return out
}

func timeOf(a *pb.FileAction) int64 {
	switch x := a.Action.(type) {
	case *pb.FileAction_Copy:
		return x.Copy.Timestamp
	case *pb.FileAction_Mkdir:
		return x.Mkdir.Timestamp
	case *pb.FileAction_Mkfile:
		return x.Mkfile.Timestamp
	case *pb.FileAction_Symlink:
		return x.Symlink.Timestamp
	}
	return 0
}
