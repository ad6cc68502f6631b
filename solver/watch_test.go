package solver

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/kiln-build/kiln/cache"
)

func TestLateJoinerGetsTheBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		release := make(chan struct{})
		f.w.onRun["a"] = func(_ context.Context, job *Job) error {
			io.WriteString(job.Log(1), "first\n")
			job.Log(2).Write(make([]byte, 3*maxBacklog))
			io.WriteString(job.Log(1), "second\n")
			<-release
			io.WriteString(job.Log(1), "third\n")
			job.Progress(Progress{ID: "p", Current: 1})
			job.Warn("careful")
			return nil
		}
		var early, late recorder
		a := f.start(t.Context(), Request{Edges: edges(step(t, "a")), Observe: early.observe})
		synctest.Wait()
		b := f.start(t.Context(), Request{Edges: edges(step(t, "a")), Observe: late.observe})
		synctest.Wait()
		close(release)
		<-a
		<-b
		early.has(t, "log first a")
		late.has(t, "started a")
		late.has(t, "log second a")
		late.has(t, "log third a")
		late.has(t, "progress a")
		late.has(t, "warning a")
		if slices.Contains(late.lines(), "log first a") {
			t.Error("the backlog is not bounded")
		}
		if !strings.Contains(strings.Join(late.lines(), " "), "earlier output left out") {
			t.Error("nothing says that output is missing")
		}
		f.Close()
	})
}

func TestStuckObserverHoldsNothingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		look := make(chan struct{})
		var r recorder
		var watched *watch
		f.w.onRun["a"] = func(_ context.Context, job *Job) error {
			out := job.Log(1)
			for range 1000 {
				out.Write(make([]byte, 10<<10))
				job.Progress(Progress{ID: "p"})
			}
			f.mu.Lock()
			for _, task := range f.tasks {
				watched = task.wants[0].attempt.build.watch
			}
			f.mu.Unlock()
			watched.mu.Lock()
			defer watched.mu.Unlock()
			if watched.output > maxQueuedOutput || len(watched.queue) > 1000 {
				t.Errorf("%d bytes and %d events wait", watched.output, len(watched.queue))
			}
			return nil
		}
		ch := f.start(t.Context(), Request{Edges: edges(step(t, "a")), Observe: func(e Event) {
			<-look
			r.observe(e)
		}})
		synctest.Wait()
		if got := f.w.ran("a"); got != 1 {
			t.Fatalf("a ran %d times while nobody looked, want 1", got)
		}
		close(look)
		<-ch
		if !strings.Contains(strings.Join(r.lines(), " "), "output left out") {
			t.Error("nothing says that output is missing")
		}
		f.Close()
	})
}

type fakeLease struct {
	held     map[cache.ChainID]bool
	released bool
}

func (l *fakeLease) Hold(id cache.ChainID) {
	if l.released {
		panic("a released lease is used")
	}
	l.held[id] = true
}
func (l *fakeLease) Release() { l.released = true }

func TestLeases(t *testing.T) {
	var made []*fakeLease
	f := newFixture(t, Options{Lease: func() Lease {
		l := &fakeLease{held: map[cache.ChainID]bool{}}
		made = append(made, l)
		return l
	}})
	base := step(t, "base", source(t, "image"))
	own := &fakeLease{held: map[cache.ChainID]bool{}}
	out := solve(t, f, Request{Edges: edges(base), Lease: own})
	if !own.held[out] || own.released {
		t.Error("the caller's lease does not hold the result")
	}
	again := &fakeLease{held: map[cache.ChainID]bool{}}
	solve(t, f, Request{Edges: edges(base), Lease: again})
	if !again.held[out] {
		t.Error("the caller's lease does not hold a result that was cached")
	}
	f.Close()
	for i, l := range made {
		if !l.released {
			t.Errorf("lease %d of %d was not released", i, len(made))
		}
	}
}

// What a pin was made of is held as long as the session that remembers it.
func TestPinsLeaseLastsAsLongAsTheSession(t *testing.T) {
	var made []*fakeLease
	f := newFixture(t, Options{Lease: func() Lease {
		l := &fakeLease{held: map[cache.ChainID]bool{}}
		made = append(made, l)
		return l
	}})
	var pins Lease
	f.w.onPin["image"] = func(_ context.Context, job *Job) error { pins = job.Lease; return nil }
	out := solve(t, f, Request{Session: "s", Edges: edges(source(t, "image"))})
	pins.Hold(out)
	if pins.(*fakeLease).released {
		t.Error("the pin's lease was released with the call")
	}
	f.EndSession("s")
	if !pins.(*fakeLease).released {
		t.Error("the pin's lease was not released with the session")
	}
}
