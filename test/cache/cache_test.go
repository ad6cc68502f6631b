package cache

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestSharing has one runner export to each kind of cache, and another import.
func TestSharing(t *testing.T) {
	t.Parallel()
	dir := context(t, "one\n")
	changed := context(t, "two\n")
	want, wantChanged := wanted(t, dir), wanted(t, changed)
	r := registry(t)
	bazel := bazelServer(t).Listener.Addr().String()
	s3, github := s3Server(t), startActions(t).URL
	for _, c := range []struct {
		name, to, from string
		changed        []string // the steps that run where app.txt has changed
	}{
		{"local-max", "type=local,dest=LOCAL,mode=max", "type=local,src=LOCAL", []string{"app"}},
		{"local-zstd", "type=local,dest=LOCAL,mode=max,compression=zstd", "type=local,src=LOCAL", []string{"app"}},
		{"registry-max", "type=registry,ref=REGISTRY/max/cache:main,mode=max,image-manifest=true", "type=registry,ref=REGISTRY/max/cache:main", []string{"app"}},
		{"http", "type=http,url=http://ci:hidden@BAZEL/team,name=app,mode=max", "type=http,url=http://ci:hidden@BAZEL/team/,name=app", []string{"app"}},
		{"s3", "S3,prefix=team/,name=a;b,mode=max,touch_refresh=1h,upload_parallelism=2", "S3,prefix=team/,name=b", []string{"app"}},
		{"gha", "GHA,mode=max,scope=app", "GHA,scope=app", []string{"app"}},
		// What the image does not contain is not in the cache.
		{"registry-min", "type=registry,ref=REGISTRY/min/cache:main", "REGISTRY/min/cache:main", []string{"app", "tool"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			fill := strings.NewReplacer("LOCAL", filepath.Join(t.TempDir(), "cache"), "REGISTRY", r.Addr, "BAZEL", bazel,
				"S3", s3.Attrs(s3.Addr), "GHA", "type=gha,url_v2="+github+",token="+actionsToken("main"))
			to, from := fill.Replace(c.to), fill.Replace(c.from)
			first := newRunner(t).must(dir, append(tarball(t), "--cache-to", to)...)
			first.check(t, all, want)
			second := newRunner(t).must(dir, append(tarball(t), "--cache-from", from)...)
			second.check(t, nil, want)
			third := newRunner(t).must(changed, append(tarball(t), "--cache-from", from)...)
			third.check(t, c.changed, wantChanged)
			for _, o := range []outcome{first, second, third} {
				if strings.Contains(o.text, "hidden") || strings.Contains(o.text, "is not used") || strings.Contains(o.text, "not exported") {
					t.Errorf("a password or a warning in\n%s", o.text)
				}
			}
		})
	}
}

// TestInline keeps the records in the image that is pushed.
func TestInline(t *testing.T) {
	t.Parallel()
	r := registry(t)
	dir := context(t, "one\n")
	push := []string{"-o", "type=registry,name=" + r.Addr + "/app:latest", "--cache-to", "type=inline"}
	from := []string{"--cache-from", "type=registry,ref=" + r.Addr + "/app:latest"}
	first := newRunner(t).must(dir, push...)
	second := newRunner(t).must(dir, append(push, from...)...)
	second.check(t, nil, first.digest)
	noEpoch := append([]string{"--build-arg", "SOURCE_DATE_EPOCH="}, push...)
	first = newRunner(t).must(dir, noEpoch...)
	newRunner(t).must(dir, append(noEpoch, from...)...).check(t, nil, first.digest)
	newRunner(t).must(dir, push...)
	third := newRunner(t).must(context(t, "two\n"), append(tarball(t), from...)...)
	third.check(t, []string{"app", "tool"}, wanted(t, context(t, "two\n")))
}

// TestPushMovesNoLayer has everything hit, and the registry hold all layers.
func TestPushMovesNoLayer(t *testing.T) {
	t.Parallel()
	r := registry(t)
	dir := context(t, "one\n")
	// Without an epoch, which would have layers written anew with other times.
	plain := []string{"--build-arg", "SOURCE_DATE_EPOCH=", "-o", "type=registry,name=" + r.Addr + "/app:latest"}
	cacheRef := "type=registry,ref=" + r.Addr + "/app/cache:main"
	first := newRunner(t).must(dir, append(plain, "--cache-to", cacheRef+",mode=max")...)
	_, before := requests(t, r, 0)
	o := newRunner(t).must(dir, append(plain, "--cache-from", cacheRef, "--cache-to", cacheRef+",mode=max")...)
	o.check(t, nil, first.digest)
	lines, _ := requests(t, r, before)
	if n := blobsRead(lines, "app"); n != 0 {
		t.Errorf("%d blobs of the image were fetched:\n%s", n, strings.Join(lines, "\n"))
	}
	// The index is fetched for the import, and for the export that adds to it.
	if n := blobsRead(lines, "app/cache"); n > 3 {
		t.Errorf("%d blobs of the cache were fetched, want the index only:\n%s", n, strings.Join(lines, "\n"))
	}
	index := map[string]bool{}
	for _, l := range lines {
		if strings.HasPrefix(l, "GET app/cache/blobs/") {
			index[l] = true
		}
		if strings.HasPrefix(l, "PATCH") {
			t.Errorf("an upload: %s", l)
		}
	}
	if len(index) != 1 {
		t.Errorf("fetched %v, want one blob, the index", index)
	}
}

// TestExportsAdd has two branches export to one name.
func TestExportsAdd(t *testing.T) {
	t.Parallel()
	r := registry(t)
	for _, c := range []struct{ name, to, from string }{
		{"local", "type=local,mode=max,dest=" + filepath.Join(t.TempDir(), "c"), ""},
		{"registry", "type=registry,mode=max,ref=" + r.Addr + "/cache", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			from := strings.ReplaceAll(strings.ReplaceAll(c.to, "dest=", "src="), "mode=max,", "")
			branches := []string{context(t, "one\n"), context(t, "two\n")}
			for _, dir := range branches {
				newRunner(t).must(dir, "--cache-to", c.to)
			}
			for _, dir := range branches {
				newRunner(t).must(dir, append(tarball(t), "--cache-from", from)...).check(t, nil, wanted(t, dir))
			}
		})
	}
}

// TestStateHolds has a runner whose state folder has everything export to a cache
// that is new, and a cache that is gone leave its state folder usable.
func TestStateHolds(t *testing.T) {
	t.Parallel()
	dir, to := context(t, "one\n"), filepath.Join(t.TempDir(), "c")
	want := wanted(t, dir)
	warm := newRunner(t)
	warm.must(dir)
	warm.must(dir, "--cache-to", "type=local,mode=max,dest="+to).check(t, nil, "")
	second := newRunner(t)
	second.must(dir, "--cache-from", "type=local,src="+to).check(t, nil, "")
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	// Its records lead to layers that nobody has any more.
	second.must(dir, tarball(t)...).check(t, all, want)
}

// TestBroken damages a cache in each way; the build must come out right.
func TestBroken(t *testing.T) {
	t.Parallel()
	dir := context(t, "one\n")
	want := wanted(t, dir)
	good := filepath.Join(t.TempDir(), "c")
	newRunner(t).must(dir, "--cache-to", "type=local,mode=max,dest="+good)
	blobs, err := filepath.Glob(filepath.Join(good, "blobs/sha256/*"))
	if err != nil || len(blobs) < 6 {
		t.Fatalf("%d blobs, %v", len(blobs), err)
	}
	damages := map[string]func(path string) error{
		"removed":   os.Remove,
		"truncated": func(p string) error { return os.Truncate(p, 40) },
		"corrupted": func(p string) error {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			data[len(data)/2] ^= 1
			return os.WriteFile(p, data, 0o644)
		},
		"emptied": func(p string) error { return os.WriteFile(p, nil, 0o644) },
	}
	names := []string{"index.json"}
	for _, b := range blobs {
		names = append(names, "blobs/sha256/"+filepath.Base(b))
	}
	for how, damage := range damages {
		for _, name := range names {
			bad := filepath.Join(t.TempDir(), "c")
			if err := os.CopyFS(bad, os.DirFS(good)); err != nil {
				t.Fatal(err)
			}
			if err := damage(filepath.Join(bad, name)); err != nil {
				t.Fatal(err)
			}
			// The epoch has the exporter read every layer.
			o := newRunner(t).must(dir, append(tarball(t), "--cache-from", "type=local,src="+bad)...)
			if o.digest != want {
				t.Errorf("%s %s: the image is %s, want %s\n%s", name, how, o.digest, want, o.text)
			}
			if strings.HasSuffix(name, "index.json") && !strings.Contains(o.text, "is not used") {
				t.Errorf("%s %s: no warning\n%s", name, how, o.text)
			}
			// An export makes the cache whole again, where it can tell that it is not.
			if how == "corrupted" && name != "index.json" {
				continue
			}
			newRunner(t).must(dir, "--cache-from", "type=local,src="+bad, "--cache-to", "type=local,mode=max,dest="+bad)
		}
	}
}

// TestServersFail lets a server fail from each request on.
func TestServersFail(t *testing.T) {
	t.Parallel()
	t.Run("registry", func(t *testing.T) {
		t.Parallel()
		p := newProxy(t, registry(t).Addr)
		failServer(t, p, "type=registry,ref="+p.addr+"/cache")
	})
	t.Run("http", func(t *testing.T) {
		t.Parallel()
		p := newProxy(t, bazelServer(t).Listener.Addr().String())
		failServer(t, p, "type=http,url=http://ci:hidden@"+p.addr+"/team")
	})
}

func failServer(t *testing.T, p *proxy, ref string) {
	dir := context(t, "one\n")
	want := wanted(t, dir)
	newRunner(t).must(dir, "--cache-to", ref+",mode=max")
	p.fail(-1, nil)
	newRunner(t).must(dir, append(tarball(t), "--cache-from", ref)...).check(t, nil, want)
	n := p.seen()
	if n < 5 {
		t.Fatalf("an import makes %d requests: the layers were not read through the proxy", n)
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			for i := range n {
				p.fail(i, fault)
				o := newRunner(t).must(dir, append(tarball(t), "--cache-from", ref)...)
				if o.digest != want {
					t.Errorf("from request %d on: the image is %s, want %s\n%s", i, o.digest, want, o.text)
				}
			}
		})
	}
}

var faults = map[string]func(http.ResponseWriter, *http.Request, http.Handler){
	"not found": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(http.StatusNotFound) },
	"denied":    func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(http.StatusForbidden) },
	"dropped":   func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) },
	"other bytes": func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		pass.ServeHTTP(&corrupter{ResponseWriter: w}, r)
	},
}

// corrupter changes a byte of every body.
type corrupter struct {
	http.ResponseWriter
	done bool
}

func (c *corrupter) Write(p []byte) (int, error) {
	if !c.done && len(p) > 20 {
		c.done = true
		p = slices.Clone(p)
		p[20] ^= 1
	}
	return c.ResponseWriter.Write(p)
}

// TestExportFails says what a build does whose cache cannot be written.
func TestExportFails(t *testing.T) {
	t.Parallel()
	dir := context(t, "one\n")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r := newRunner(t)
	o := r.must(dir, "--cache-to", "type=local,dest="+file+"/c")
	if !strings.Contains(o.text, "the cache was not exported") {
		t.Errorf("no warning:\n%s", o.text)
	}
	o = r.build(dir, "--cache-to", "type=local,ignore-error=false,dest="+file+"/c")
	if o.err == nil || !strings.Contains(o.text, "exporting the cache") {
		t.Errorf("got %v, want an error:\n%s", o.err, o.text)
	}
}

// TestFlags refuses what makes no sense before anything is built.
func TestFlags(t *testing.T) {
	t.Parallel()
	dir := context(t, "one\n")
	r := newRunner(t)
	for _, c := range []struct{ flag, value, want string }{
		{"--cache-to", "type=floppy", "unknown type"},
		{"--cache-from", "type=inline", "unknown type"},
		{"--cache-to", "type=local", "dest="},
		{"--cache-from", "type=registry", "ref="},
		{"--cache-from", "type=http", "url="},
		{"--cache-to", "type=http,url=ftp://u:hidden@x", "want http"},
		{"--cache-to", "type=local,dest=x,mode=most", "want min or max"},
		{"--cache-to", "type=inline,mode=max", "inline"},
		{"--cache-to", "type=local,dest=x,compression=estargz", "compression"},
		{"--cache-from", "type=local,src=x,mod=max", "unknown attribute mod"},
		{"--cache-to", "mode=max", "type is missing"},
	} {
		o := r.build(dir, c.flag, c.value)
		if o.err == nil || !strings.Contains(o.text, c.want) || len(o.ran) > 0 {
			t.Errorf("%s %s: got %v, want it refused with %q\n%s", c.flag, c.value, o.err, c.want, o.text)
		}
	}
}

// TestRegistryHangs lets a registry answer nothing any more: from the first
// request on, and when the first layer is asked for.
func TestRegistryHangs(t *testing.T) {
	t.Parallel()
	dir := context(t, "one\n")
	want := wanted(t, dir)
	r := registry(t)
	for _, from := range []int{0, 2} {
		p := newProxy(t, r.Addr)
		ref := "type=registry,ref=" + p.addr + "/cache" + string(rune('a'+from))
		newRunner(t).must(dir, "--cache-to", ref+",mode=max")
		p.fail(from, func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() })
		newRunner(t).must(dir, append(tarball(t), "--cache-from", ref)...).check(t, all, want)
	}
}
