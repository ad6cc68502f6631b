package local

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/dest"
	"github.com/kiln-build/kiln/exporter/internal/fixture"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func export(t testing.TB, c *fixture.Cache, dir string, attrs map[string]string, r exporter.Result) error {
	t.Helper()
	e, err := New(c.Env(dest.Path{Name: dir}), attrs)
	if err != nil {
		t.Fatal(err)
	}
	_, err = e.Export(t.Context(), r, new(fixture.Steps))
	return err
}

// names lists what is below dir.
func names(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); err == nil && rel != "." {
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func content(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestExport(t *testing.T) {
	c := fixture.New(t)
	linked := c.File([]byte("two names"), func(e *tree.Entry) { e.Tag = 7 })
	// Half a megabyte, a hole, and a letter.
	sparse := make([]byte, 8<<20)
	copy(sparse[512<<10:], "x")
	copy(sparse[len(sparse)-1:], "y")
	lower := c.Layer(map[string]tree.Entry{
		"a":           linked,
		"sub/deep/b":  linked,
		"gone":        c.File([]byte("removed above"), nil),
		"prog":        c.File([]byte("#!"), func(e *tree.Entry) { e.Mode, e.UID = 0o4755, 1234 }),
		"read-only":   {Kind: tree.Dir, Mode: 0o555, MTime: 1500000000e9 + 7},
		"read-only/f": c.File([]byte("inside"), func(e *tree.Entry) { e.MTime = 1400000000e9 + 123 }),
		"link":        {Kind: tree.Symlink, Mode: 0o777, Target: "/etc/passwd", MTime: 1300000000e9},
		"fifo":        {Kind: tree.Fifo, Mode: 0o640},
		"null":        {Kind: tree.CharDev, Mode: 0o666, Dev: unix.Mkdev(1, 3)},
		"sparse":      c.File(sparse, nil),
		"empty":       c.File(nil, nil),
		"attr":        c.File([]byte("with"), func(e *tree.Entry) { e.Xattrs = []tree.Xattr{{Name: "user.k", Value: "v"}} }),
	})
	upper := c.Layer(map[string]tree.Entry{"gone": {Kind: tree.Whiteout}})
	dir := t.TempDir()
	if err := export(t, c, dir, nil, fixture.Result(c.Chain(lower, upper), nil)); err != nil {
		t.Fatal(err)
	}
	want := []string{"a", "attr", "empty", "fifo", "link", "null", "prog", "read-only", "read-only/f", "sparse", "sub", "sub/deep", "sub/deep/b"}
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	stat := func(name string) unix.Stat_t {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return st
	}
	if stat("a").Ino != stat("sub/deep/b").Ino {
		t.Error("a and sub/deep/b are not one file")
	}
	if st := stat("prog"); st.Mode&0o7777 != 0o4755 || int(st.Uid) != os.Getuid() {
		t.Errorf("prog has mode %o and owner %d, want 4755 and this user", st.Mode&0o7777, st.Uid)
	}
	for name, mtime := range map[string]int64{"read-only": 1500000000e9 + 7, "read-only/f": 1400000000e9 + 123, "link": 1300000000e9, "sub/deep": 1700000000e9} {
		if st := stat(name); st.Mtim.Nano() != mtime {
			got := st.Mtim.Nano()
			t.Errorf("%s: time %d, want %d", name, got, mtime)
		}
	}
	if st := stat("sparse"); st.Blocks*512 > 4<<20 || st.Size != 8<<20 {
		t.Errorf("sparse has %d bytes in %d blocks, want holes", st.Size, st.Blocks)
	}
	if got := content(t, dir, "sparse"); got != string(sparse) {
		t.Error("sparse has other contents")
	}
	if st := stat("null"); st.Rdev != unix.Mkdev(1, 3) || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		t.Errorf("null is device %x", st.Rdev)
	}
	buf := make([]byte, 8)
	if n, err := unix.Getxattr(filepath.Join(dir, "attr"), "user.k", buf); err != nil || string(buf[:n]) != "v" {
		t.Errorf("attr has attribute %q, %v", buf[:max(n, 0)], err)
	}
}

func TestMerge(t *testing.T) {
	c := fixture.New(t)
	r := fixture.Result(c.Chain(c.Layer(map[string]tree.Entry{
		"file":        c.File([]byte("new"), nil),
		"over-dir":    c.File([]byte("a file now"), nil),
		"over-file":   {Kind: tree.Dir, Mode: 0o755},
		"over-file/x": c.File([]byte("x"), nil),
		"dir/new":     c.File([]byte("new"), nil),
		"trap/x":      c.File([]byte("x"), nil),
		"link":        {Kind: tree.Symlink, Mode: 0o777, Target: "elsewhere"},
	})), nil)
	outside := t.TempDir()
	dir := t.TempDir()
	for path, data := range map[string]string{"file": "old", "over-dir/a/b": "hidden", "over-file": "old", "dir/old": "kept", "link": "a file"} {
		full := filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte(data), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, "trap")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // again over its own result
		if err := export(t, c, dir, nil, r); err != nil {
			t.Fatal(err)
		}
		want := []string{"dir", "dir/new", "dir/old", "file", "link", "over-dir", "over-file", "over-file/x", "trap", "trap/x"}
		if got := names(t, dir); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if got := content(t, dir, "file"); got != "new" {
		t.Errorf("file holds %q", got)
	}
	if got := names(t, outside); len(got) != 0 {
		t.Errorf("%v was written outside of the folder", got)
	}
	if err := export(t, c, dir, map[string]string{"mode": "delete"}, r); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); slices.Contains(got, "dir/old") || !slices.Contains(got, "dir/new") {
		t.Errorf("with mode=delete: %v", got)
	}
}

func TestHardLinksOverExisting(t *testing.T) {
	c := fixture.New(t)
	e := c.File([]byte("one"), func(e *tree.Entry) { e.Tag = 9 })
	r := fixture.Result(c.Chain(c.Layer(map[string]tree.Entry{"a": e, "d/b": e})), nil)
	dir := t.TempDir()
	for range 3 {
		if err := export(t, c, dir, nil, r); err != nil {
			t.Fatal(err)
		}
		if got, want := names(t, dir), []string{"a", "d", "d/b"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

func TestPlatforms(t *testing.T) {
	c := fixture.New(t)
	arm := ocispecs.Platform{OS: "linux", Architecture: "arm64"}
	r := fixture.Result(c.Chain(c.Layer(map[string]tree.Entry{"f": c.File([]byte("amd64"), nil)})), nil)
	r.Images = append(r.Images, exporter.Image{Platform: arm, Root: c.Chain(c.Layer(map[string]tree.Entry{"f": c.File([]byte("arm64"), nil)}))})
	dir := t.TempDir()
	if err := export(t, c, dir, nil, r); err != nil {
		t.Fatal(err)
	}
	if got := content(t, dir, "linux_arm64", "f") + content(t, dir, "linux_amd64", "f"); got != "arm64amd64" {
		t.Errorf("got %q", got)
	}
	err := export(t, c, t.TempDir(), map[string]string{"platform-split": "false"}, r)
	if err == nil || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("two platforms in one folder: %v, want an error that names them", err)
	}
	// What a frontend calls a platform is the name of the folder, and stays one name.
	for id, want := range map[string]string{"linux/amd64 (debug)": "linux_amd64 (debug)", `..\outside`: ".._outside", "..": "__", "C:x": "C_x"} {
		named := exporter.Result{Multi: true, Images: []exporter.Image{{Platform: r.Images[0].Platform, ID: id, Root: r.Images[0].Root}}}
		dir := t.TempDir()
		if err := export(t, c, dir, nil, named); err != nil {
			t.Fatal(err)
		}
		if got := content(t, dir, want, "f"); got != "amd64" {
			t.Errorf("the folder of %q holds %q", id, got)
		}
	}
	// Two that come to one name are not mixed.
	both := exporter.Result{Images: []exporter.Image{r.Images[0], r.Images[1]}}
	both.Images[0].ID, both.Images[1].ID = "a/b", "a_b"
	dir = t.TempDir()
	err = export(t, c, dir, nil, both)
	if err == nil || !strings.Contains(err.Error(), `"a/b" and "a_b"`) || len(names(t, dir)) > 0 {
		t.Errorf("two platforms with one folder: %v, %v is written; want an error that names them", err, names(t, dir))
	}
	single := t.TempDir()
	if err := export(t, c, single, map[string]string{"platform-split": "true", "source-date-epoch": "1000"}, exporter.Result{Images: r.Images[:1]}); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(single, "linux_amd64", "f")); err != nil || !st.ModTime().Equal(time.Unix(1000, 0)) {
		t.Errorf("%v, %v; want a file with the time of SOURCE_DATE_EPOCH", st, err)
	}
}

func TestGone(t *testing.T) {
	c := fixture.New(t)
	id := c.Layer(map[string]tree.Entry{"f": c.File([]byte("lost"), nil)})
	if err := os.RemoveAll(c.Path("files")); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// The layer on top of it lacks nothing.
	top := c.Layer(map[string]tree.Entry{"link": {Kind: tree.Symlink, Mode: 0o777, Target: "f"}})
	err := export(t, c, dir, nil, fixture.Result(c.Chain(id, top), nil))
	var gone *cache.GoneError
	if !errors.As(err, &gone) || gone.Layer != id {
		t.Errorf("got %v, want that the layer is gone", err)
	}
	if got := names(t, dir); slices.Contains(got, "f") {
		t.Errorf("%v is left", got)
	}
}

// A tree that is deeper than any path leads is not written, and the error is short.
func TestTooDeep(t *testing.T) {
	c := fixture.New(t)
	deep := tree.Entry{Kind: tree.Dir, Mode: 0o755}
	for range 20 {
		deep.Name = strings.Repeat("n", 255)
		ref, err := tree.PutDir(c, []tree.Entry{deep})
		if err != nil {
			t.Fatal(err)
		}
		deep = tree.Entry{Kind: tree.Dir, Mode: 0o755, Children: ref}
	}
	l := cache.Layer{ID: cache.TreeLayerID(deep), Root: deep}
	if err := c.PutLayer(l); err != nil {
		t.Fatal(err)
	}
	err := export(t, c, t.TempDir(), nil, fixture.Result(c.Chain(l.ID), nil))
	if !errors.Is(err, unix.ENAMETOOLONG) || len(err.Error()) > 1000 {
		t.Errorf("got %v", err)
	}
}

func TestAttributesThatAreWrong(t *testing.T) {
	for _, attrs := range []map[string]string{{"mode": "move"}, {"platform-split": "perhaps"}, {"source-date-epoch": "now"}} {
		if _, err := New(exporter.Env{}, attrs); err == nil {
			t.Errorf("%v was taken", attrs)
		}
	}
}

func BenchmarkExport(b *testing.B) {
	c := fixture.New(b)
	files := map[string]tree.Entry{}
	for i := range 5000 {
		files[fmt.Sprintf("d%d/f%d", i%100, i)] = c.File(bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 3000), nil)
	}
	r := fixture.Result(c.Chain(c.Layer(maps.Clone(files))), nil)
	for b.Loop() {
		dir := b.TempDir()
		if err := export(b, c, dir, nil, r); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		os.RemoveAll(dir)
		b.StartTimer()
	}
	b.ReportMetric(5000*float64(b.N)/b.Elapsed().Seconds(), "files/s")
}
