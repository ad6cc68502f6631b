package local

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/moby/patternmatcher"
	"golang.org/x/sys/unix"
)

// memBucket is a Bucket in memory that counts what it is asked.
type memBucket struct {
	mu   sync.Mutex
	m    map[string][]byte
	puts int
}

func (b *memBucket) Get(key []byte) ([]byte, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v, ok := b.m[string(key)]
	return v, ok
}

func (b *memBucket) Put(key, value []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.m == nil {
		b.m = make(map[string][]byte)
	}
	b.m[string(key)] = slices.Clone(value)
	b.puts++
	return nil
}

// write makes files by path; a path that ends in "/" is a directory, a content
// that begins with "->" makes a link.
func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for p, content := range files {
		full := filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch target, isLink := strings.CutPrefix(content, "->"); {
		case strings.HasSuffix(p, "/"):
			err = os.MkdirAll(full, 0o755)
		case isLink:
			err = os.Symlink(target, full)
		default:
			err = os.WriteFile(full, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// paths lists a tree's paths, directories with a slash.
func paths(t testing.TB, n tree.Nodes, root tree.Entry) []string {
	t.Helper()
	var out []string
	err := tree.Walk(n, root, func(p string, e tree.Entry) error {
		if e.Kind == tree.Dir {
			p += "/"
		}
		out = append(out, p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out[1:]
}

func TestScanKinds(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"a/file": "content", "a/link": "->../b", "empty": "", "dir/": ""})
	if err := os.Chmod(filepath.Join(dir, "a/file"), 0o4751); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(filepath.Join(dir, "a/file"), 0o4751); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "a/file"), filepath.Join(dir, "hard")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "sock"), unix.S_IFSOCK|0o666, 0); err != nil {
		t.Fatal(err)
	}
	for attr, value := range map[string]string{"user.kept": "v", "trusted.overlay.origin": "x"} {
		if err := unix.Setxattr(filepath.Join(dir, "dir"), attr, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Lchown(filepath.Join(dir, "empty"), 17, 18); err != nil {
		t.Fatal(err)
	}
	n := tree.NewMemNodes()
	s := &Scanner{Nodes: n}
	root, err := s.Scan(context.Background(), dir, Filter{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"a/", "a/file", "a/link", "dir/", "empty", "fifo", "hard", "null"}
	if got := paths(t, n, root); !slices.Equal(got, want) {
		t.Errorf("paths are %q, want %q", got, want)
	}
	get := func(p string) tree.Entry {
		e, err := tree.Lookup(n, root, p)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	file, hard := get("a/file"), get("hard")
	if file.Mode != 0o4751 || file.Size != 7 {
		t.Errorf("a/file has mode %o and size %d, want 4751 and 7", file.Mode, file.Size)
	}
	const sum = "sha256:ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
	if file.Content.String() != sum {
		t.Errorf("a/file has content %s, want %s", file.Content, sum)
	}
	if file.Key() != hard.Key() {
		t.Error("hard links have different keys, want the same")
	}
	if e := get("empty"); e.UID != 0 || e.GID != 0 {
		t.Errorf("empty belongs to %d:%d, want 0:0", e.UID, e.GID)
	}
	if got := get("a/link").Target; got != "../b" {
		t.Errorf("a/link leads to %q, want ../b", got)
	}
	if got := get("null").Dev; got != unix.Mkdev(1, 3) {
		t.Errorf("null has device %d, want %d", got, unix.Mkdev(1, 3))
	}
	if got, want := get("dir").Xattrs, []tree.Xattr{{Name: "user.kept", Value: "v"}}; !slices.Equal(got, want) {
		t.Errorf("dir has xattrs %v, want %v", got, want)
	}
	if root.Mode != 0o755 {
		t.Errorf("the root has mode %o, want 755", root.Mode)
	}
}

func TestFilter(t *testing.T) {
	files := map[string]string{
		"Dockerfile": "d", "main.go": "m", "a/x.go": "x", "a/b/y.go": "y", "a/b/c/z.txt": "z",
		"node_modules/m/i.js": "i", "node_modules/keep/k.js": "k", "docs/r.md": "r", "docs/e/": "",
		"link": "->a/b", "abs": "->/docs/r.md", "loop1": "->loop2", "loop2": "->loop1", "lnk/to": "->../link/c",
	}
	for _, test := range []struct {
		name string
		f    Filter
		want []string
	}{
		{"an excluded directory goes with all that is in it",
			Filter{Exclude: []string{"node_modules", "docs", "l*", "abs"}},
			[]string{"Dockerfile", "a/", "a/b/", "a/b/c/", "a/b/c/z.txt", "a/b/y.go", "a/x.go", "main.go"}},
		{"an exception below an excluded directory brings back that directory",
			Filter{Exclude: []string{"*", "!node_modules/keep"}},
			[]string{"node_modules/", "node_modules/keep/", "node_modules/keep/k.js"}},
		{"an exception with a wildcard is found though its directory is excluded",
			Filter{Exclude: []string{"**", "!**/*.md"}}, []string{"docs/", "docs/r.md"}},
		{"an include pattern with a wildcard brings the directories on the way",
			Filter{Include: []string{"**/*.txt"}}, []string{"a/", "a/b/", "a/b/c/", "a/b/c/z.txt"}},
		{"an included path brings all below it",
			Filter{Include: []string{"a/b"}}, []string{"a/", "a/b/", "a/b/c/", "a/b/c/z.txt", "a/b/y.go"}},
		{"exclude wins over include",
			Filter{Include: []string{"a"}, Exclude: []string{"a/b/c"}}, []string{"a/", "a/b/", "a/b/y.go", "a/x.go"}},
		{"a followed path brings the links on its way and their targets",
			Filter{Follow: []string{"link/y.go"}}, []string{"a/", "a/b/", "a/b/y.go", "link"}},
		{"a link is followed to a link",
			Filter{Follow: []string{"lnk/to/z.txt"}}, []string{"a/", "a/b/", "a/b/c/", "a/b/c/z.txt", "link", "lnk/", "lnk/to"}},
		{"an absolute link stays inside", Filter{Follow: []string{"abs"}}, []string{"abs", "docs/", "docs/r.md"}},
		{"links in a circle end", Filter{Follow: []string{"loop1"}}, []string{"loop1", "loop2"}},
		{"a wildcard in a followed path finds links", Filter{Follow: []string{"ab*"}}, []string{"abs", "docs/", "docs/r.md"}},
		{"following the folder itself restricts nothing but what exclude says",
			Filter{Follow: []string{"."}, Exclude: []string{"a", "node_modules", "l*", "docs"}}, []string{"Dockerfile", "abs", "main.go"}},
		{"a path that is not there brings nothing", Filter{Follow: []string{"nope/x"}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, files)
			n := tree.NewMemNodes()
			root, err := (&Scanner{Nodes: n}).Scan(context.Background(), dir, test.f)
			if err != nil {
				t.Fatal(err)
			}
			if got := paths(t, n, root); !slices.Equal(got, test.want) {
				t.Errorf("paths are %q, want %q", got, test.want)
			}
		})
	}
}

// TestFilterAgainstReference compares scans of random folders under random
// patterns with asking the pattern matcher about every path.
func TestFilterAgainstReference(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	names := []string{"a", "b", "cc", "d.go", "e.txt", "f"}
	patterns := []string{"a", "b/", "*.go", "**/*.txt", "a/*", "a/b", "*/cc", "**", "cc/**", "!a/b", "!**/d.go", "!b", "!cc/f", "**/b", "f*", "a/**/b"}
	pick := func(max int) []string {
		var out []string
		for range r.Intn(max) {
			out = append(out, patterns[r.Intn(len(patterns))])
		}
		return out
	}
	for round := range 60 {
		dir := t.TempDir()
		var all []string
		var fill func(p string, depth int)
		fill = func(p string, depth int) {
			for _, n := range names {
				full := path.Join(p, n)
				switch {
				case r.Intn(3) == 0:
				case depth < 3 && !strings.Contains(n, "."):
					write(t, dir, map[string]string{full + "/": ""})
					all = append(all, full)
					fill(full, depth+1)
				default:
					write(t, dir, map[string]string{full: full})
					all = append(all, full)
				}
			}
		}
		fill("", 0)
		f := Filter{Include: pick(3), Exclude: pick(5)}
		n := tree.NewMemNodes()
		root, err := (&Scanner{Nodes: n}).Scan(context.Background(), dir, f)
		if err != nil {
			t.Fatal(err)
		}
		want := reference(t, f, all)
		var got []string
		for _, p := range paths(t, n, root) {
			got = append(got, strings.TrimSuffix(p, "/"))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("round %d, %+v of %q:\ngot  %q\nwant %q", round, f, all, got, want)
		}
	}
}

// reference asks about every path by itself, with all its parents.
func reference(t *testing.T, f Filter, all []string) []string {
	t.Helper()
	matches := func(patterns []string, p string, otherwise bool) bool {
		if len(patterns) == 0 {
			return otherwise
		}
		pm, err := patternmatcher.New(patterns)
		if err != nil {
			t.Fatal(err)
		}
		var info patternmatcher.MatchInfo
		ok := false
		for i := 0; i <= len(p); i++ {
			if i < len(p) && p[i] != '/' {
				continue
			}
			if ok, info, err = pm.MatchesUsingParentResults(p[:i], info); err != nil {
				t.Fatal(err)
			}
		}
		return ok
	}
	in := make(map[string]bool)
	for _, p := range all {
		if matches(f.Include, p, true) && !matches(f.Exclude, p, false) {
			for ; p != "."; p = path.Dir(p) {
				in[p] = true
			}
		}
	}
	var out []string
	for p := range in {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

// age makes everything in a folder older than the stat cache distrusts.
func age(t testing.TB, s *Scanner) {
	s.Clock = func() time.Time { return time.Now().Add(time.Hour) }
}

func TestStatCache(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"a/x": "one", "a/y": "two", "b": "three", "l": "->b"})
	n, bucket := tree.NewMemNodes(), new(memBucket)
	s := &Scanner{Nodes: n, Stats: bucket}
	scan := func() tree.Entry {
		t.Helper()
		root, err := s.Scan(context.Background(), dir, Filter{})
		if err != nil {
			t.Fatal(err)
		}
		return root
	}
	age(t, s)
	first := scan()
	puts := bucket.puts
	if puts != 2 {
		t.Errorf("the first scan stored %d directories, want 2", puts)
	}
	if again := scan(); again.Key() != first.Key() {
		t.Error("the second scan gave another tree")
	}
	if bucket.puts != puts {
		t.Errorf("a scan that found nothing new stored %d values", bucket.puts-puts)
	}

	// An edit that keeps size and mtime is seen by its ctime.
	x := filepath.Join(dir, "a/x")
	fi, err := os.Stat(x)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	write(t, dir, map[string]string{"a/x": "ONE"})
	if err := os.Chtimes(x, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	edited := scan()
	if edited.Children.ID == first.Children.ID {
		t.Error("an edit that kept size and mtime was not seen")
	}

	// What another filter leaves out is not forgotten.
	puts = bucket.puts
	if _, err := s.Scan(context.Background(), dir, Filter{Include: []string{"b"}}); err != nil {
		t.Fatal(err)
	}
	scan()
	if bucket.puts != puts {
		t.Errorf("scans with and without a filter stored %d values, want 0", bucket.puts-puts)
	}

	// A name that is gone is forgotten.
	if err := os.Remove(filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	scan()
	if bucket.puts != puts+1 {
		t.Errorf("a removed file stored %d values, want 1", bucket.puts-puts)
	}
}

// TestRacilyClean edits a file at once after a scan, within the tick of a clock
// that is made to stand still.
func TestRacilyClean(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"f": "one"})
	n, bucket := tree.NewMemNodes(), new(memBucket)
	s := &Scanner{Nodes: n, Stats: bucket}
	if _, err := s.Scan(context.Background(), dir, Filter{}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	if got := loadStats(bucket, st, nil).records; len(got) != 0 {
		t.Errorf("a file that was just written is remembered: %+v", got)
	}
	age(t, s)
	if _, err := s.Scan(context.Background(), dir, Filter{}); err != nil {
		t.Fatal(err)
	}
	if got := loadStats(bucket, st, nil).records; len(got) != 1 {
		t.Errorf("an old file is not remembered")
	}
}

func TestRecordRoundTrip(t *testing.T) {
	for _, r := range []record{
		{name: "f", ino: 1, size: 2, mtime: -3, ctime: 4, kind: unix.S_IFREG, content: [32]byte{5}},
		{name: "l", ino: 1 << 60, kind: unix.S_IFLNK, target: "/x", xattrs: []tree.Xattr{{Name: "a", Value: "b\x00c"}}},
	} {
		b := r.append(nil)
		var got record
		if d := newDecoder(b); !got.decode(d) || len(d.b) != 0 {
			t.Fatalf("decoding %+v: got %+v, %d bytes left", r, got, len(d.b))
		}
		if fmt.Sprint(got) != fmt.Sprint(r) {
			t.Errorf("got %+v, want %+v", got, r)
		}
		for i := range b {
			if new(record).decode(newDecoder(b[:i])) {
				t.Errorf("the first %d of %d bytes decoded", i, len(b))
			}
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	r := record{name: "f", kind: unix.S_IFREG, xattrs: []tree.Xattr{{Name: "a", Value: "b"}}}
	f.Add(r.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r, again record
		if d := newDecoder(b); !r.decode(d) || len(d.b) > len(b) {
			return
		}
		if !again.decode(newDecoder(r.append(nil))) || fmt.Sprint(again) != fmt.Sprint(r) {
			t.Errorf("%+v came back as %+v", r, again)
		}
	})
}

func TestFolderStaysInside(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"in/f": "f", "in/l": "->../out", "out": "secret", "in/d": "->.", "in/sub/": ""})
	f, err := OpenFolder(filepath.Join(dir, "in"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if file, err := f.Open("f"); err != nil {
		t.Errorf("opening a file: %v", err)
	} else {
		file.Close()
	}
	for _, p := range []string{"l", "d/f", "../out", "sub", "/etc/passwd", ""} {
		if file, err := f.Open(p); err == nil {
			file.Close()
			t.Errorf("%q was opened", p)
		}
	}
	if _, err := f.Open("nope"); !os.IsNotExist(err) {
		t.Errorf("a missing file gives %v, want one that wraps %v", err, fs.ErrNotExist)
	}
}

// manyFiles makes n files of about 6 KB in directories of 10.
func manyFiles(tb testing.TB, n int) string {
	dir := tb.TempDir()
	body := make([]byte, 6000)
	for i := range n {
		d := filepath.Join(dir, fmt.Sprintf("d%02d/e%03d", i/1000, i/10%100))
		if i%10 == 0 {
			if err := os.MkdirAll(d, 0o755); err != nil {
				tb.Fatal(err)
			}
		}
		copy(body, fmt.Sprint(i))
		if err := os.WriteFile(filepath.Join(d, fmt.Sprintf("f%d", i)), body, 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

func BenchmarkScanCold20k(b *testing.B) {
	dir := manyFiles(b, 20_000)
	for b.Loop() {
		if _, err := (&Scanner{Nodes: tree.NewMemNodes(), Stats: new(memBucket)}).Scan(context.Background(), dir, Filter{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkScanWarm20k(b *testing.B) {
	dir := manyFiles(b, 20_000)
	s := &Scanner{Nodes: tree.NewMemNodes(), Stats: new(memBucket)}
	age(b, s)
	if _, err := s.Scan(context.Background(), dir, Filter{}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Scan(context.Background(), dir, Filter{}); err != nil {
			b.Fatal(err)
		}
	}
}
