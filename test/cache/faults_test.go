//go:build faults

package cache

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// TestEveryFault has every request of a build fail in every way, for every kind of
// server: the build imports a cache and exports to another, and is to succeed with
// the right image. TestServersFail has a part of this.
func TestEveryFault(t *testing.T) {
	dir, changed := smallContext(t, "one\n"), smallContext(t, "two\n")
	want := wanted(t, changed)
	every := append(slices.Clone(faults), fault{"hangs", hang})
	for _, name := range slices.Sorted(maps.Keys(backends)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := backends[name](t)
			newRunner(t).must(dir, "--cache-to", b.ref(b.addr, "warm")+",mode=max")
			for k, f := range every {
				t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) {
					t.Parallel()
					// A proxy has one fault at a time.
					p := newProxy(t, b.addr)
					n := 1
					for i := 0; i < n; i++ {
						p.fail(i, false, f.do)
						to := b.ref(p.addr, fmt.Sprintf("to%d-%d", k, i))
						o := newRunner(t).build(changed, append(tarball(t), "--cache-from", b.ref(p.addr, "warm")+",patience=1s", "--cache-to", to+",mode=max,patience=1s")...)
						n = max(n, min(p.seen(), 40))
						p.fail(-1, false, nil)
						if o.err != nil || o.digest != want {
							t.Errorf("request %d: %v, the image is %s, want %s\n%s", i, o.err, o.digest, want, o.text)
						}
						// What it left there spoils no other build.
						o = newRunner(t).build(changed, append(tarball(t), "--cache-from", to)...)
						if o.err != nil || o.digest != want {
							t.Errorf("after request %d: %v, the image is %s, want %s\n%s", i, o.err, o.digest, want, o.text)
						}
					}
					if n < 8 {
						t.Errorf("a build makes %d requests: it does not use the cache", n)
					}
					t.Logf("%d requests", n)
				})
			}
		})
	}
}
