package daemon

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
)

func logOf(text string) solver.VertexLog {
	return solver.VertexLog{Subject: solver.Subject{Vertex: llb.Digest{1}}, Stream: 1, Data: []byte(text)}
}

// clock is a clock that tests turn.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func TestWatchSeesAllHoweverLate(t *testing.T) {
	all := newBuilds((&clock{now: time.Unix(1e9, 0)}).Now)
	b, err := all.add(&controlapi.SolveRequest{Ref: "r"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := all.add(&controlapi.SolveRequest{Ref: "r"}); err == nil {
		t.Error("two builds have one ref")
	}
	watch := func() <-chan string {
		ch := make(chan string, 1)
		go func() {
			text := ""
			err := b.watch(t.Context(), func(s *controlapi.StatusResponse) error {
				for _, l := range s.Logs {
					text += string(l.Msg)
				}
				return nil
			})
			ch <- fmt.Sprint(text, err)
		}()
		return ch
	}
	early := watch()
	b.event(logOf("one "))
	middle := watch()
	b.event(logOf("two "))
	all.end(b, &kiln.Result{}, nil)
	for name, ch := range map[string]<-chan string{"early": early, "in the middle": middle, "late": watch()} {
		if got, want := <-ch, "one two <nil>"; got != want {
			t.Errorf("a watcher that came %s saw %q, want %q", name, got, want)
		}
	}
}

func TestWatchEndsWithItsClient(t *testing.T) {
	all := newBuilds(time.Now)
	b, err := all.add(&controlapi.SolveRequest{Ref: "r"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.watch(ctx, func(*controlapi.StatusResponse) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was cancelled", err)
	}
}

func TestOutputIsBounded(t *testing.T) {
	b, err := newBuilds(time.Now).add(&controlapi.SolveRequest{Ref: "r"})
	if err != nil {
		t.Fatal(err)
	}
	piece := string(make([]byte, 1<<20))
	for range 20 {
		b.event(logOf(piece))
	}
	if kept, next, _ := b.after(0); len(kept) != maxLog>>20 || next != 20 {
		t.Errorf("%d pieces of 1 MiB are kept, and 20 ended at %d; want %d and 20", len(kept), next, maxLog>>20)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	c := &clock{now: time.Unix(1e9, 0)}
	all := newBuilds(c.Now)
	run := func(ref string, pinned bool) {
		t.Helper()
		b, err := all.add(&controlapi.SolveRequest{Ref: ref})
		if err != nil {
			t.Fatal(err)
		}
		b.record.Pinned = pinned
		all.end(b, nil, errors.New("failed"))
	}
	run("pinned", true)
	for i := range maxBuilds + 10 {
		run(fmt.Sprint(i), false)
	}
	if _, ok := all.byRef["pinned"]; !ok || len(all.order) != maxBuilds {
		t.Errorf("%d builds are kept, the pinned one: %v; want %d, and it", len(all.order), ok, maxBuilds)
	}
	c.now = c.now.Add(keepBuilds + time.Hour)
	run("later", false)
	if len(all.order) != 2 {
		t.Errorf("after %v, %d builds are kept, want the pinned one and the new one", keepBuilds, len(all.order))
	}
}
