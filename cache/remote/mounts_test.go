package remote

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/cache/blob"
)

// describe lists a folder: names, kinds, modes, owners, times, contents.
func describe(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		when := st.Mtim
		if d.Type() == fs.ModeSymlink {
			when = unix.Timespec{} // a link's own time is not saved
		}
		fmt.Fprintf(&b, "%s %o %d:%d %d.%d links=%d", rel, st.Mode, st.Uid, st.Gid, when.Sec, when.Nsec, map[bool]uint64{true: st.Nlink}[d.Type() == 0])
		switch d.Type() {
		case fs.ModeSymlink:
			to, _ := os.Readlink(p)
			fmt.Fprintf(&b, " -> %s", to)
		case 0:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %x", idOf(data))
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// fillMount makes a folder like one that a compiler keeps.
func fillMount(t *testing.T, dir string) {
	t.Helper()
	random := rand.NewChaCha8([32]byte{1})
	for i := range 60 {
		sub := filepath.Join(dir, fmt.Sprintf("%02x", i%8))
		data := make([]byte, 200_000)
		_, _ = random.Read(data)
		if err := os.MkdirAll(sub, 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), data, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	long := make([]byte, maxPiece+5)
	_, _ = random.Read(long)
	steps := []error{
		os.WriteFile(filepath.Join(dir, "long"), long, 0o600),
		os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600),
		os.Symlink("/etc/passwd", filepath.Join(dir, "out")),
		os.Link(filepath.Join(dir, "long"), filepath.Join(dir, "zz-hard")),
		os.Lchown(filepath.Join(dir, "empty"), 1000, 1001),
		os.Chmod(filepath.Join(dir, "empty"), 0o4755|fs.ModeSetuid),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
		os.Chtimes(filepath.Join(dir, "00"), time.Unix(5, 7), time.Unix(5, 7)),
		os.Chmod(dir, 0o777),
		os.Chtimes(dir, time.Unix(9, 9), time.Unix(9, 9)),
	}
	for _, err := range steps {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// counted counts the pieces that were written to a store.
type counted struct {
	*Layout
	put int
}

func (c *counted) Put(ctx context.Context, d blob.Descriptor, o []string, open func(context.Context) (io.ReadCloser, error)) error {
	return c.Layout.Put(ctx, d, o, func(ctx context.Context) (io.ReadCloser, error) {
		if d.MediaType == pieceType {
			c.put++
		}
		return open(ctx)
	})
}

func TestMountRoundTrip(t *testing.T) {
	private, public := keys(t)
	c := openCache(t)
	dir := t.TempDir()
	fillMount(t, dir)
	store := &counted{Layout: NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})}
	save := func(at int64) int {
		t.Helper()
		before := store.put
		x := Begin(t.Context(), c, store, ExportOptions{Sign: private, Parallel: 1})
		defer x.Close()
		s, err := x.Finish(t.Context(), nil, []Mount{{ID: "/root/.cache", Dir: dir}, {ID: "/unknown"}}, time.Unix(at, 0))
		if err != nil || len(s.Unsaved) > 0 {
			t.Fatal(s.Unsaved, err)
		}
		return store.put - before
	}
	restore := func() string {
		t.Helper()
		to := t.TempDir()
		i := importFrom(t, openCache(t), store, Options{Verify: []ed25519.PublicKey{public}})
		ok, err := i.Mount(t.Context(), "/root/.cache", to)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		return to
	}
	first := save(1000)
	if first < 4 {
		t.Fatalf("%d pieces, want several", first)
	}
	os.Remove(filepath.Join(dir, "fifo")) // which is not saved
	if err := os.Chtimes(dir, time.Unix(9, 9), time.Unix(9, 9)); err != nil {
		t.Fatal(err)
	}
	if got, want := describe(t, restore()), describe(t, dir); got != want {
		t.Errorf("restored\n%s\nwant\n%s", got, want)
	}
	// Times that changed move no piece, and one file moves one or two.
	if err := os.Chtimes(filepath.Join(dir, "01", "1"), time.Unix(77, 0), time.Unix(77, 0)); err != nil {
		t.Fatal(err)
	}
	if n := save(2000); n != 0 {
		t.Errorf("%d pieces were sent after a file was touched", n)
	}
	if err := os.WriteFile(filepath.Join(dir, "03", "new"), []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	if n := save(3000); n < 1 || n > 2 {
		t.Errorf("%d pieces of %d were sent after a file was added, want one or two", n, first)
	}
	if got, want := describe(t, restore()), describe(t, dir); got != want {
		t.Errorf("restored\n%s\nwant\n%s", got, want)
	}
	// A build that did not use it keeps it, and an unknown key gets none of it.
	x := Begin(t.Context(), c, store, ExportOptions{Sign: private})
	if _, err := x.Finish(t.Context(), nil, []Mount{{ID: "/root/.cache"}}, time.Unix(3000+30*24*3600, 0)); err != nil {
		t.Fatal(err)
	}
	x.Close()
	restore()
	_, stranger := keys(t)
	i := importFrom(t, openCache(t), store, Options{Verify: []ed25519.PublicKey{stranger}})
	if ok, err := i.Mount(t.Context(), "/root/.cache", t.TempDir()); ok || err == nil {
		t.Errorf("a snapshot was taken that another key had signed")
	}
}

// takenOnce is a store in which somebody else has begun to write the first piece, and has
// let go of it when it is asked for again.
type takenOnce struct {
	Target
	was bool
}

func (s *takenOnce) Put(ctx context.Context, d blob.Descriptor, origins []string, open func(context.Context) (io.ReadCloser, error)) error {
	if d.MediaType == pieceType && !s.was {
		s.was = true
		return fmt.Errorf("it is not there: %w", ErrTaken)
	}
	return s.Target.Put(ctx, d, origins, open)
}

// TestMountIsTaken has two mounts with the same files, the first of which cannot be saved:
// no piece of it counts as sent.
func TestMountIsTaken(t *testing.T) {
	dir := t.TempDir()
	fillMount(t, dir)
	os.Remove(filepath.Join(dir, "fifo")) // which is not saved
	store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	x := Begin(t.Context(), openCache(t), &takenOnce{Target: store}, ExportOptions{Parallel: 1})
	defer x.Close()
	s, err := x.Finish(t.Context(), nil, []Mount{{ID: "a", Dir: dir}, {ID: "b", Dir: dir}}, time.Unix(1000, 0))
	if err != nil || len(s.Unsaved) != 1 || !strings.Contains(s.Unsaved[0], `"a"`) {
		t.Fatal(s.Unsaved, err)
	}
	to := t.TempDir()
	if ok, err := importFrom(t, openCache(t), store, Options{}).Mount(t.Context(), "b", to); err != nil || !ok {
		t.Fatal(ok, err)
	}
	if got, want := describe(t, to), describe(t, dir); got != want {
		t.Errorf("restored\n%s\nwant\n%s", got, want)
	}
}

// TestLostMount has pieces of a snapshot vanish. The export of a build that could not be
// brought the mount sends them again, and once a day any export that has the mount.
func TestLostMount(t *testing.T) {
	dir := t.TempDir()
	fillMount(t, dir)
	os.Remove(filepath.Join(dir, "fifo")) // which is not saved
	c, store := openCache(t), NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	save := func(at int64, dir string, i *Import) {
		t.Helper()
		x := Begin(t.Context(), c, store, ExportOptions{Import: i})
		defer x.Close()
		s, err := x.Finish(t.Context(), nil, []Mount{{ID: "m", Dir: dir}}, time.Unix(at, 0))
		if err != nil || len(s.Unsaved) > 0 {
			t.Fatal(s.Unsaved, err)
		}
	}
	lose := func() {
		t.Helper()
		x, _, err := load(t.Context(), store)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range x.Mounts[0].Pieces[1:3] {
			if err := os.Remove(filepath.Join(store.dir, blobPath(p.Blob.Digest))); err != nil {
				t.Fatal(err)
			}
		}
	}
	restore := func() (*Import, error) {
		t.Helper()
		i := importFrom(t, openCache(t), store, Options{})
		_, err := i.Mount(t.Context(), "m", t.TempDir())
		return i, err
	}
	const day = 24 * 3600
	save(day, dir, nil)
	lose()
	i, err := restore()
	if err == nil {
		t.Fatal("a snapshot was brought back that is not there")
	}
	save(day+60, dir, i)
	if _, err := restore(); err != nil {
		t.Errorf("after a build that found out: %v", err)
	}
	lose()
	save(day+120, dir, nil)
	if _, err := restore(); err == nil {
		t.Error("all pieces were asked for within a day")
	}
	save(2*day+180, dir, nil)
	if _, err := restore(); err != nil {
		t.Errorf("a day later: %v", err)
	}
	lose()
	save(4*day, "", nil) // it asks, and has nothing to send
	if _, err := restore(); err == nil {
		t.Error("pieces came from nowhere")
	}
}

// TestHostileListing has snapshots reach out of their folder, and lie about sizes.
func TestHostileListing(t *testing.T) {
	outside := t.TempDir()
	for name, list := range map[string][]listed{
		"absolute":         {{Path: outside + "/x", Kind: "file", Mode: 0o644}},
		"dots":             {{Path: "../x", Kind: "file", Mode: 0o644}},
		"through a link":   {{Path: "l", Kind: "symlink", Target: outside}, {Path: "l/x", Kind: "file", Mode: 0o644}},
		"link to a folder": {{Path: "l", Kind: "symlink", Target: outside}, {Path: "l", Kind: "dir", Mode: 0o777}},
		"dress a link":     {{Path: "l", Kind: "dir", Mode: 0o777}, {Path: "l/../l", Kind: "dir", Mode: 0o777}},
		"hard link out":    {{Path: "l", Kind: "link", Target: "../../etc/passwd"}},
		"too long":         {{Path: "f", Kind: "file", Size: 1 << 30}},
		"negative":         {{Path: "f", Kind: "file", Size: -1}},
		"device":           {{Path: "f", Kind: "device"}},
		"odd mode":         {{Path: "f", Kind: "file", Mode: 0o70644}},
		"twice":            {{Path: "f", Kind: "file"}, {Path: "f", Kind: "file"}},
	} {
		dir := t.TempDir()
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		for _, e := range list {
			if err := json.NewEncoder(&b).Encode(e); err != nil {
				t.Fatal(err)
			}
		}
		if err := unpack(t.Context(), root, b.Bytes(), strings.NewReader("some")); err == nil {
			t.Errorf("%s: it was taken", name)
		}
		root.Close()
		if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
			t.Errorf("%s: outside there is %v now, %v", name, left, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add([]byte(`{"path":"d","kind":"dir","mode":493}{"path":"d/f","kind":"file","size":3}{"path":"l","kind":"symlink","target":"d"}`), []byte("abc"))
	f.Fuzz(func(t *testing.T, list, data []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		_ = unpack(t.Context(), root, list, bytes.NewReader(data)) // most are wrong
		if names, err := os.ReadDir(parent); err != nil || len(names) != 1 {
			t.Errorf("beside the folder there is %v, %v", names, err)
		}
	})
}

func TestAddVariants(t *testing.T) {
	v := func(how string, n byte) variant { return variant{Variant: Variant{How: how, DiffID: blob.Digest{n}}} }
	got := addVariants([]variant{v("a", 1), v("b", 1)}, []variant{v("c", 2), v("a", 2)})
	if !slices.EqualFunc(got, []variant{v("c", 2), v("a", 2), v("b", 1)}, func(a, b variant) bool { return a.same(b) }) {
		t.Errorf("got %+v", got)
	}
	var many []variant
	for i := range 2 * maxVariants {
		many = append(many, v(fmt.Sprint(i), 1))
	}
	if got := addVariants(many[:maxVariants], many[maxVariants:]); len(got) != maxVariants {
		t.Errorf("%d variants, want %d at most", len(got), maxVariants)
	}
}
