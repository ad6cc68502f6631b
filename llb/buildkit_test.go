package llb

import (
	"slices"
	"testing"

	client "github.com/moby/buildkit/client/llb"
)

// What BuildKit's own client marshals is read here, with the client's digests, and
// written again with the capabilities that it asks for.
func TestBuildKitClientsGraphs(t *testing.T) {
	base := client.Image("docker.io/library/alpine:3", client.ResolveModeForcePull)
	context := client.Local("context", client.FollowPaths([]string{"a"}), client.SharedKeyHint("context"))
	run := base.Run(client.Shlex("make all"), client.Dir("/src"),
		client.AddMount("/src", context, client.Readonly),
		client.AddMount("/cache", client.Scratch(), client.AsPersistentCacheDir("c", client.CacheMountLocked)),
		client.AddMount("/tmp", client.Scratch(), client.Tmpfs()),
		client.AddSecret("/run/s", client.SecretID("s")),
		client.AddSSHSocket(),
		client.IgnoreCache,
		client.WithCustomName("RUN make"),
		client.Network(client.NetModeNone))
	out := run.AddMount("/out", client.Scratch())
	files := base.File(client.Copy(out, "/bin", "/usr/bin/", &client.CopyInfo{AllowWildcard: true, IncludePatterns: []string{"x"}, Mode: &client.ChmodOpt{Mode: 0o755}}).
		Mkdir("/srv", 0o755, client.WithParents(true), client.WithUser("www")).
		Mkfile("/srv/a", 0o644, []byte("x")).
		Rm("/tmp/*", client.WithAllowWildcard(true)))
	merged := client.Merge([]client.State{base, files, client.Diff(base, run.Root()), client.Git("https://example.com/a.git", "main"), client.HTTP("https://example.com/x")})
	want, err := merged.Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e, err := Load(want.ToPB())
	if err != nil {
		t.Fatal(err)
	}
	got, err := Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Def) != len(want.Def) {
		t.Fatalf("%d ops, want %d", len(got.Def), len(want.Def))
	}
	for _, raw := range want.Def {
		if !slices.ContainsFunc(got.Def, func(b []byte) bool { return string(b) == string(raw) }) {
			t.Errorf("an op was lost: %q", raw)
		}
	}
	for _, v := range Walk(e) {
		d := v.Digest().String()
		theirs, ours := want.ToPB().Metadata[d], got.Metadata[d]
		for c := range theirs.Caps {
			if !ours.Caps[c] {
				t.Errorf("%s: capability %q is missing", v.Describe(), c)
			}
		}
		if theirs.IgnoreCache != ours.IgnoreCache || theirs.Description["llb.customname"] != ours.Description["llb.customname"] {
			t.Errorf("%s: meta %v, want %v", v.Describe(), ours, theirs)
		}
	}
}
