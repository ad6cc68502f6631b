//go:build parity

package parity

import (
	"archive/tar"
	"bytes"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// tree makes a tree of tarballs of these headers, a layer each.
func tree(t *testing.T, layers ...[]tar.Header) map[string]*entry {
	t.Helper()
	out := map[string]*entry{}
	for _, headers := range layers {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, h := range headers {
			data := h.Linkname
			if h.Typeflag == tar.TypeReg {
				h.Size, h.Linkname = int64(len(data)), ""
			}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeReg {
				w.Write([]byte(data))
			}
		}
		w.Close()
		entries, err := readEntries(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if err := apply(out, entries); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: content, Mode: 0o644}
}

func dir(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}
}

// TestCompareTrees changes one thing of a tree at a time.
func TestCompareTrees(t *testing.T) {
	link := tar.Header{Typeflag: tar.TypeLink, Name: "d/hard", Linkname: "d/f"}
	sym := tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "d"}
	base := []tar.Header{dir("d"), file("d/f", "one"), link, sym}
	with := func(change func(h []tar.Header) []tar.Header) map[string]*entry {
		return tree(t, change(slices.Clone(base)))
	}
	for _, test := range []struct {
		got  map[string]*entry
		want string // a part of the one line; "" for none
	}{
		// The same tree.
		{tree(t, base), ""},
		// The same tree from two layers.
		{tree(t, []tar.Header{dir("d"), file("d/f", "old"), file("d/gone", "")}, append(slices.Clone(base), file("d/.wh.gone", ""))), ""},
		// A folder made anew, its files in the layer below hidden.
		{tree(t, []tar.Header{dir("d"), file("d/old", "")}, append(slices.Clone(base), file("d/.wh..wh..opq", ""))), ""},
		// A file more, and one less.
		{with(func(h []tar.Header) []tar.Header { return append(h, file("x", "")) }), "tree /x: only in kiln's (file)"},
		{with(func(h []tar.Header) []tar.Header { return h[:3] }), "tree /l: only in buildkit's (symlink)"},
		// A folder that nothing names has the usual mode.
		{with(func(h []tar.Header) []tar.Header { return h[1:] }), ""},
		{with(func(h []tar.Header) []tar.Header { h[0].Mode = 0o700; return h }), "tree /d: mode: buildkit 0755, kiln 0700"},
		{with(func(h []tar.Header) []tar.Header { h[0].Uid = 5; return h }), "tree /d: owner: buildkit 0:0, kiln 5:0"},
		{with(func(h []tar.Header) []tar.Header { h[3].Linkname = "e"; return h }), "tree /l: link target: buildkit d, kiln e"},
		{with(func(h []tar.Header) []tar.Header { h[2] = file("d/hard", "one"); return h }), "tree /d/f: hard links: buildkit /d/f /d/hard, kiln has none"},
		{with(func(h []tar.Header) []tar.Header { h[1] = file("d/f", "two"); return h }), "tree /d/f: content"},
		{with(func(h []tar.Header) []tar.Header {
			h[1].PAXRecords = map[string]string{"SCHILY.xattr.user.a": "b"}
			return h
		}), `tree /d/f: xattrs: buildkit has none, kiln {"user.a":"b"}`},
	} {
		d := &differences{}
		compareTrees(d, tree(t, base), test.got, comparison{})
		switch {
		case test.want == "" && len(d.lines) > 0:
			t.Errorf("got %q, want no difference", d.lines)
		case test.want != "" && (len(d.lines) == 0 || !strings.Contains(d.lines[0], test.want)):
			t.Errorf("got %q, want %q", d.lines, test.want)
		}
	}
}

// TestCompareConfigs changes one thing of a config at a time.
func TestCompareConfigs(t *testing.T) {
	make := func(key string, value any) *image {
		config := map[string]any{"Env": []any{"A=b"}}
		history := []any{map[string]any{"created": "then", "created_by": "RUN", "comment": "c"}}
		out := map[string]any{"created": "now", "config": config, "history": history, "architecture": "amd64"}
		switch key {
		case "created":
			out[key] = value
		case "created_by":
			history[0].(map[string]any)[key] = value
		default:
			config[key] = value
		}
		return &image{platform: "linux/amd64", config: out, manifest: v1.Manifest{}}
	}
	for _, test := range []struct {
		key   string
		value any
		how   comparison
		want  string
	}{
		{"Env", []any{"A=b"}, comparison{}, ""},
		{"Env", []any{"A=c"}, comparison{}, `config.Env: buildkit ["A=b"], kiln ["A=c"]`},
		{"OnBuild", []any{"RUN x"}, comparison{}, `config.OnBuild: buildkit has none, kiln ["RUN x"]`},
		// What is empty and what is absent are the same to those that read it.
		{"Volumes", map[string]any{}, comparison{}, ""},
		{"created_by", "COPY", comparison{}, `history 00 created_by: buildkit "RUN", kiln "COPY"`},
		{"created", "later", comparison{}, ""},
		{"created", "later", comparison{times: true}, `created: buildkit "now", kiln "later"`},
	} {
		lines := compareImages([]*image{make("Env", []any{"A=b"})}, []*image{make(test.key, test.value)}, test.how)
		if got := strings.Join(lines, "; "); got != test.want {
			t.Errorf("%s: got %q, want %q", test.key, got, test.want)
		}
	}
}
