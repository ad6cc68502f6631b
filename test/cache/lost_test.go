package cache

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// keeper is a store of caches whose blobs can be taken out of it.
type keeper struct {
	ref  string
	blob func(hex string) string // a pattern of the file that holds a blob
}

var keepers = map[string]func(t *testing.T) keeper{
	"registry": func(t *testing.T) keeper {
		r := registry(t)
		return keeper{"type=registry,ref=" + r.Addr + "/cache:main", func(hex string) string {
			return filepath.Join(r.Dir, "data/docker/registry/v2/blobs/sha256/*", hex, "data")
		}}
	},
	"s3": func(t *testing.T) keeper {
		s := s3Server(t)
		return keeper{s.Attrs(s.Addr), func(hex string) string { return filepath.Join(s.Dir, "blobs/sha256:"+hex) }}
	},
}

// lose takes out of a store what a runner has fetched of it, and gives how many blobs
// that were.
func (k keeper) lose(t *testing.T, r runner) (n int) {
	t.Helper()
	kept, err := filepath.Glob(filepath.Join(r.root, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range kept {
		held, err := filepath.Glob(k.blob(filepath.Base(file)))
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range held {
			if err := os.Remove(h); err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	return n
}

// TestLost has a layer vanish from a cache. The build that finds out runs its step again,
// whether it has something to add to the cache or not, and the next runner finds all.
func TestLost(t *testing.T) {
	t.Parallel()
	for name, start := range keepers {
		for what, app := range map[string]string{"same": "one\n", "edited": "two\n"} {
			t.Run(name+"-"+what, func(t *testing.T) {
				t.Parallel()
				k := start(t)
				from, to := "--cache-from", []string{"--cache-to", k.ref + ",mode=max"}
				newRunner(t).must(smallContext(t, "one\n"), to...)
				reader := newRunner(t)
				reader.must(smallContext(t, "two\n"), from, k.ref)
				if n := k.lose(t, reader); n != 1 {
					t.Fatalf("%d blobs were fetched, want the layer that the last step stands on", n)
				}

				dir := smallContext(t, app)
				o := newRunner(t).must(dir, append(append(tarball(t), from, k.ref), to...)...)
				if want := wanted(t, dir); o.digest != want || len(o.ran) == 0 || strings.Contains(o.text, "was not kept") {
					t.Errorf("ran %q, the image is %s, want %s, and the other records kept\n%s", o.ran, o.digest, want, o.text)
				}
				newRunner(t).must(dir, append(tarball(t), from, k.ref)...).check(t, nil, o.digest)
				edited := smallContext(t, "three\n")
				newRunner(t).must(edited, append(tarball(t), from, k.ref)...).check(t, []string{"app"}, wanted(t, edited))
			})
		}
	}
}

// TestManifestIsNotTaken has a registry not take the cache's manifest at the end of an
// export: for a while, which costs that export alone, or for good, as one does in which
// blobs are missing.
func TestManifestIsNotTaken(t *testing.T) {
	t.Parallel()
	one, two := smallContext(t, "one\n"), smallContext(t, "two\n")
	for _, c := range []struct {
		name   string
		status int
		times  int // kiln asks twice where it may pass
		said   string
		ran    map[string][]string // afterwards
	}{
		{"for a while", http.StatusServiceUnavailable, 2, "the cache was not exported", map[string][]string{one: nil, two: {"app"}}},
		{"for good", http.StatusBadRequest, 1, "was not kept", map[string][]string{one: {"app"}, two: nil}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newProxy(t, registry(t).Addr)
			ref := "type=registry,ref=" + p.addr + "/cache:main"
			newRunner(t).must(one, "--cache-to", ref+",mode=max")
			seen := 0
			p.failWhen(func(r *http.Request) bool {
				if r.Method != http.MethodPut || !strings.HasPrefix(r.URL.Path, "/v2/cache/manifests/") {
					return false
				}
				seen++
				return seen <= c.times
			}, status(c.status))
			if o := newRunner(t).must(two, "--cache-to", ref+",mode=max"); !strings.Contains(o.text, c.said) {
				t.Errorf("it does not say that %s:\n%s", c.said, o.text)
			}
			for dir, ran := range c.ran {
				newRunner(t).must(dir, append(tarball(t), "--cache-from", ref)...).check(t, ran, wanted(t, dir))
			}
		})
	}
}
