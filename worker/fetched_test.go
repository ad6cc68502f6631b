package worker

import (
	"strings"
	"testing"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/worker/proxy"
	"github.com/moby/buildkit/solver/pb"
)

// What is kept of what steps fetched is counted once, however often a step came to the
// same, and stays within its bound.
func TestFetchedIsBounded(t *testing.T) {
	c := openCache(t)
	p := newProxies(c)
	step := llb.Exec{Meta: &pb.Meta{Args: []string{"true"}}, Mounts: []llb.Mount{llb.BindWritable(llb.Edge{}, "", pb.RootMount, false)}}
	v, err := step.Vertex()
	if err != nil {
		t.Fatal(err)
	}
	stored := func() (size int64) {
		t.Helper()
		if err := p.fetched.Each(nil, func(_, value []byte) error { size += int64(len(value)); return nil }); err != nil {
			t.Fatal(err)
		}
		return size
	}
	for _, length := range []int{100, 1000, 10} {
		r := proxy.Record{Files: []proxy.File{{URL: strings.Repeat("x", length)}}}
		if err := p.keep(v, []cache.ChainID{{1}, {2}}, r); err != nil {
			t.Fatal(err)
		}
		if want := stored(); p.size != want || want == 0 {
			t.Errorf("counted %d bytes, and %d are kept", p.size, want)
		}
	}
	large := proxy.Record{Files: []proxy.File{{URL: strings.Repeat("x", 1<<20)}}}
	for i := range 2 * (maxFetched >> 20) {
		if err := p.keep(v, []cache.ChainID{{3, byte(i)}}, large); err != nil {
			t.Fatal(err)
		}
	}
	if got := stored(); got != p.size || got > maxFetched+2<<20 || got < maxFetched/4 {
		t.Errorf("%d bytes are kept, and %d were counted", got, p.size)
	}
}
