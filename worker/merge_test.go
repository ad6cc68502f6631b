package worker

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
)

// TestMergeTooLarge merges what was merged, until that is more layers than a chain may
// have. What is long takes its time, and ends with its build.
func TestMergeTooLarge(t *testing.T) {
	r := newRig(t, Session{})
	one := r.copied(llb.Edge{}, r.local("ctx", map[string]string{"f": "1"}), "/", "/")
	long := one
	for depth := 1; ; depth *= 2 {
		merged := vertex(r, must(llb.Merge([]llb.Edge{long, long})))
		id, err := r.try(merged)
		if 2*depth > maxChain {
			if err == nil || !strings.Contains(err.Error(), "more than 10000 layers") {
				t.Errorf("merging %d layers gives %v", 2*depth, err)
			}
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if c, err := r.c.Chain(id); err != nil || c.Depth != 2*depth {
			t.Fatalf("merging %d layers made a chain of %d (%v)", 2*depth, c.Depth, err)
		}
		long = merged
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for name, made := range map[string]made{
		"a merge": must(llb.Merge([]llb.Edge{one, long})),
		"a diff":  must(llb.Diff(one, long)),
	} {
		job := r.job(vertex(r, made).Vertex)
		job.Inputs = []cache.ChainID{r.solve(one), r.solve(long)}
		if _, err := r.w.Run(ctx, job); !errors.Is(err, context.Canceled) {
			t.Errorf("%s that was cancelled gives %v", name, err)
		}
		job.Lease.Release()
	}
}
