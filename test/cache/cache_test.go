package cache

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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
	nginx := nginxServer(t)
	s3, github := s3Server(t), startActions(t).URL
	for _, c := range []struct {
		name, to, from string
		changed        []string // the steps that run where app.txt has changed
	}{
		{"local-max", "type=local,dest=LOCAL,mode=max", "type=local,src=LOCAL", []string{"app"}},
		{"local-zstd", "type=local,dest=LOCAL,mode=max,compression=zstd", "type=local,src=LOCAL", []string{"app"}},
		{"registry-index", "type=registry,ref=REGISTRY/index/cache:main,mode=max,image-manifest=false", "type=registry,ref=REGISTRY/index/cache:main", []string{"app"}},
		{"registry-list", "type=registry,ref=REGISTRY/list/cache:main,mode=max,oci-mediatypes=false", "type=registry,ref=REGISTRY/list/cache:main", []string{"app"}},
		{"local-index", "type=local,dest=LOCAL,mode=max,image-manifest=false", "type=local,src=LOCAL", []string{"app"}},
		{"registry-max", "type=registry,ref=REGISTRY/max/cache:main,mode=max,image-manifest=true", "type=registry,ref=REGISTRY/max/cache:main", []string{"app"}},
		{"http", "type=http,url=http://ci:hidden@BAZEL/team,name=app,mode=max", "type=http,url=http://ci:hidden@BAZEL/team/,name=app", []string{"app"}},
		{"http-nginx", "type=http,url=http://ci:hidden@NGINX/team,name=app,mode=max", "type=http,url=http://ci:hidden@NGINX/team,name=app", []string{"app"}},
		{"s3", "S3,prefix=team/,name=a;b,mode=max,touch_refresh=1h,upload_parallelism=2", "S3,prefix=team/,name=b", []string{"app"}},
		{"gha", "GHA,mode=max,scope=app", "GHA,scope=app", []string{"app"}},
		// What the image does not contain is not in the cache.
		{"registry-min", "type=registry,ref=REGISTRY/min/cache:main", "REGISTRY/min/cache:main", []string{"app", "tool"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			fill := strings.NewReplacer("LOCAL", filepath.Join(t.TempDir(), "cache"), "REGISTRY", r.Addr, "BAZEL", bazel, "NGINX", nginx,
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

// TestPushMovesNoLayer has everything hit, and the registry hold all layers. With an
// epoch the image's layers have other times than the cache's.
func TestPushMovesNoLayer(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{
		"plain":   {"--build-arg", "SOURCE_DATE_EPOCH="},
		"epoch":   {"--build-arg", "SOURCE_DATE_EPOCH=1600000000"},
		"rewrite": {"--build-arg", "SOURCE_DATE_EPOCH=1600000000", "--output-rewrite"},
	} {
		t.Run(name, func(t *testing.T) { pushAgain(t, flags) })
	}
}

func pushAgain(t *testing.T, flags []string) {
	r := registry(t)
	dir := context(t, "one\n")
	output := "type=registry,name=" + r.Addr + "/app:latest"
	if n := len(flags) - 1; flags[n] == "--output-rewrite" {
		flags, output = flags[:n], output+",rewrite-timestamp=true"
	}
	plain := append(slices.Clone(flags), "-o", output)
	cacheRef := "type=registry,ref=" + r.Addr + "/app/cache:main"
	first := newRunner(t).must(dir, append(plain, "--cache-to", cacheRef+",mode=max")...)
	_, before := requests(t, r, 0)
	o := newRunner(t).must(dir, append(plain, "--cache-from", cacheRef, "--cache-to", cacheRef+",mode=max")...)
	o.check(t, nil, first.digest)
	lines, _ := requests(t, r, before)
	if n := blobsRead(lines, "app"); n != 0 {
		t.Errorf("%d blobs of the image were fetched:\n%s", n, strings.Join(lines, "\n"))
	}
	// The export has the index from the import, and nothing to add to it.
	if n := blobsRead(lines, "app/cache"); n != 1 {
		t.Errorf("%d blobs of the cache were fetched, want the index only:\n%s", n, strings.Join(lines, "\n"))
	}
	for _, l := range lines {
		if strings.HasPrefix(l, "PATCH") || strings.HasPrefix(l, "PUT app/cache/") {
			t.Errorf("an upload: %s", l)
		}
	}
	if t.Failed() {
		t.Log(o.text)
	}
}

// TestAtOnce has runners export to one name at the same moment. The records of all
// of them are to be there afterwards.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	s3, github := s3Server(t), startActions(t).URL
	bazel := bazelServer(t).Listener.Addr().String()
	r := registry(t)
	for name, ref := range map[string]string{
		"local":    "type=local,DIR=" + filepath.Join(t.TempDir(), "c"),
		"registry": "type=registry,ref=" + r.Addr + "/cache",
		"http":     "type=http,url=http://ci:hidden@" + bazel + "/team",
		"s3":       s3.Attrs(s3.Addr),
		"gha":      "type=gha,url_v2=" + github + ",token=" + actionsToken("main"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var dirs []string
			var group sync.WaitGroup
			for _, app := range []string{"one\n", "two\n", "three\n"} {
				dir, runner := context(t, app), newRunner(t)
				dirs = append(dirs, dir)
				group.Go(func() {
					o := runner.build(dir, "--cache-to", strings.ReplaceAll(ref, "DIR", "dest")+",mode=max")
					if o.err != nil || strings.Contains(o.text, "not exported") {
						t.Errorf("%v\n%s", o.err, o.text)
					}
				})
			}
			group.Wait()
			for _, dir := range dirs {
				if o := newRunner(t).must(dir, "--cache-from", strings.ReplaceAll(ref, "DIR", "src")); len(o.ran) > 0 {
					t.Errorf("%q ran: the records of one exporter were lost\n%s", o.ran, o.text)
				}
			}
		})
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
			if told := strings.Contains(o.text, "is not used") || strings.Contains(o.text, " is gone: "); len(o.ran) > 0 && !told {
				t.Errorf("%s %s: %q ran, and nothing says why\n%s", name, how, o.ran, o.text)
			}
			// An export makes the cache whole again, where it can tell that it is not.
			if how == "corrupted" && name != "index.json" {
				continue
			}
			newRunner(t).must(dir, "--cache-from", "type=local,src="+bad, "--cache-to", "type=local,mode=max,dest="+bad)
		}
	}
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
		{"--cache-to", "type=s3,region=x", "bucket="},
		{"--cache-from", "type=s3,bucket=x,access_key_id=y", "together"},
		{"--cache-to", "type=s3,bucket=x,touch_refresh=soon", "want a time"},
		{"--cache-to", "type=s3,bucket=x,upload_parallelism=0", "upload_parallelism"},
		{"--cache-to", "type=s3,bucket=x,name=a;;b", "name:"},
		{"--cache-to", "type=s3,bucket=x,endpoint_url=ftp://x", "endpoint_url"},
		{"--cache-from", "type=gha", "ACTIONS_RESULTS_URL"},
		{"--cache-from", "type=gha,url_v2=http://x,token=y,version=1", "shut"},
		{"--cache-to", "type=inline,mode=max", "inline"},
		{"--cache-to", "type=local,dest=x,compression=estargz", "compression"},
		{"--cache-from", "type=local,src=x,mod=max", "unknown attribute mod"},
		{"--cache-from", "type=azblob,account_url=http://x,secret_access_key=eA==,name= ;b", "name:"},
		{"--cache-to", "mode=max", "type is missing"},
		{"--cache-from", "http", "want type=http"},
	} {
		o := r.build(dir, c.flag, c.value)
		if o.err == nil || !strings.Contains(o.text, c.want) || len(o.ran) > 0 {
			t.Errorf("%s %s: got %v, want it refused with %q\n%s", c.flag, c.value, o.err, c.want, o.text)
		}
	}
}
