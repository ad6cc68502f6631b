package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/daemon/history"
	"github.com/kiln-build/kiln/daemon/status"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
)

func logOf(text string) solver.VertexLog {
	return solver.VertexLog{Subject: solver.Subject{Vertex: llb.Digest{1}}, Stream: 1, Data: []byte(text)}
}

// clock is a clock that tests turn.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

// A record is for every client: of the caches that a build reads it has the names, and
// not the keys.
func TestRecordNamesCaches(t *testing.T) {
	r := newRecord(&controlapi.SolveRequest{FrontendAttrs: map[string]string{
		"target": "all",
		"cache-imports": `[{"Type":"s3","Attrs":{"bucket":"b","name":"main","secret_access_key":"hidden"}},null,` +
			`{"Type":"registry","Attrs":{"ref":"r/cache"}}]`,
	}}, time.Unix(1e9, 0))
	want := `[{"Type":"s3","Attrs":{"bucket":"b","name":"main"}},null,{"Type":"registry","Attrs":{"ref":"r/cache"}}]`
	if got := r.FrontendAttrs["cache-imports"]; got != want || r.FrontendAttrs["target"] != "all" {
		t.Errorf("got %s", got)
	}
	if got := namedImports("{"); got != "" {
		t.Errorf("of what cannot be read: %s", got)
	}
}

func TestWatchSeesAllHoweverLate(t *testing.T) {
	all := newBuilds((&clock{now: time.Unix(1e9, 0)}).Now, nil, func(error) {})
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
	all := newBuilds(time.Now, nil, func(error) {})
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

// TestOutputIsKeptOnTheDisk sees that a late watcher gets all of a long output, of
// which memory holds the end only, and that nothing is left of it afterwards.
func TestOutputIsKeptOnTheDisk(t *testing.T) {
	all := newBuilds(time.Now, nil, func(error) {})
	all.temp = t.TempDir()
	b, err := all.add(&controlapi.SolveRequest{Ref: "r"})
	if err != nil {
		t.Fatal(err)
	}
	piece := func(i int) string { return fmt.Sprintf("%d:", i) + string(make([]byte, 1<<20)) }
	const pieces = 20
	var seen []string
	see := func(s *controlapi.StatusResponse) error {
		for _, l := range s.Logs {
			if head, _, ok := strings.Cut(string(l.Msg[:min(5, len(l.Msg))]), ":"); ok {
				seen = append(seen, head)
			}
		}
		return nil
	}
	for i := range pieces {
		b.event(logOf(piece(i)))
	}
	first := b.after(0)
	if len(first.statuses) >= 8 || first.next != pieces || first.older == nil {
		t.Errorf("memory holds %d pieces of 1 MiB of a build that is at %d", len(first.statuses), first.next)
	}
	// One that is slow goes on where it was.
	slow := b.after(3)
	if err := b.send(slow, see); err != nil || len(seen) != pieces-3 || seen[0] != "3" {
		t.Errorf("from the fourth on %q, %v", seen, err)
	}
	seen = nil
	late, err := all.find(t.Context(), "r")
	if err != nil {
		t.Fatal(err)
	}
	// It begins to look when the build has been forgotten.
	all.end(b, &kiln.Result{}, nil)
	all.writing.Wait()
	if err := late.watch(t.Context(), see); err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range pieces {
		want = append(want, fmt.Sprint(i))
	}
	if !slices.Equal(seen, want) {
		t.Errorf("a late watcher saw the pieces %q", seen)
	}
	all.writing.Wait()
	if left, err := os.ReadDir(all.temp); err != nil || len(left) > 0 || b.older != nil {
		t.Errorf("%v is left, %v", left, err)
	}
}

// TestOverflowIsBounded fills one up: what it holds is the beginning without gaps.
func TestOverflowIsBounded(t *testing.T) {
	o, err := newOverflow(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	small, large := status.Of(logOf("x")), status.Of(logOf(string(make([]byte, maxOverflow))))
	o.add(small)
	o.add(large)
	o.add(small)
	if len(o.offsets) != 1 || o.size > 1000 || o.from(1) != nil {
		t.Errorf("%d messages of %d bytes are kept", len(o.offsets), o.size)
	}
}

// keep gives builds whose records are kept in a folder.
func keep(t *testing.T, dir string, c *clock, entries int) *builds {
	t.Helper()
	kept, err := history.Open(dir, history.Options{MaxEntries: entries, MaxAge: time.Hour, Clock: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kept.Close() })
	return newBuilds(c.Now, kept, func(err error) { t.Error(err) })
}

func TestRecordsOutliveTheDaemon(t *testing.T) {
	dir, c := t.TempDir(), &clock{now: time.Unix(1e9, 0)}
	all := keep(t, dir, c, 10)
	run := func(ref string, failed error) {
		t.Helper()
		b, err := all.add(&controlapi.SolveRequest{Ref: ref, FrontendAttrs: map[string]string{"context": "https://me:hunter2@example.com/x"}})
		if err != nil {
			t.Fatal(err)
		}
		b.event(logOf("output of " + ref))
		result := &kiln.Result{Metadata: map[string]string{"k": "v"}, Documents: []kiln.Document{
			{Document: exporter.Document{MediaType: "leaf", Data: []byte("leaf")}},
			{Document: exporter.Document{MediaType: "root", Data: []byte("root"), Root: true}, Output: 3},
		}}
		c.now = c.now.Add(time.Second)
		all.end(b, result, failed)
	}
	run("good", nil)
	run("bad", errors.New("it broke"))
	all.writing.Wait()

	all = keep(t, dir, c, 10)
	text := ""
	w, err := all.find(t.Context(), "good")
	if err == nil {
		err = w.watch(t.Context(), func(s *controlapi.StatusResponse) error {
			for _, l := range s.Logs {
				text += string(l.Msg)
			}
			return nil
		})
	}
	if err != nil || text != "output of good" {
		t.Errorf("the status stream holds %q, %v", text, err)
	}
	good, _ := all.kept.Get("good")
	if good.ExporterResponse["k"] != "v" || good.Result.Results[3].MediaType != "root" || good.Trace == nil || good.Error != nil {
		t.Errorf("the record of a good build is %v", good)
	}
	if v := good.FrontendAttrs["context"]; strings.Contains(v, "hunter2") {
		t.Errorf("the record holds a password: %s", v)
	}
	if _, _, err := all.kept.OpenBlob(digest.FromString("leaf")); err != nil {
		t.Errorf("what the root names: %v", err)
	}
	bad, _ := all.kept.Get("bad")
	if bad.Error.GetMessage() != "it broke" || bad.ExternalError == nil || bad.ExporterResponse != nil {
		t.Errorf("the record of a bad build is %v", bad)
	}
}

func TestListenersSeeWhatTheyAskFor(t *testing.T) {
	c := &clock{now: time.Unix(1e9, 0)}
	all := keep(t, t.TempDir(), c, 10)
	for i, ref := range []string{"a", "b", "c"} {
		b, err := all.add(&controlapi.SolveRequest{Ref: ref})
		if err != nil {
			t.Fatal(err)
		}
		c.now = c.now.Add(time.Minute)
		all.end(b, &kiln.Result{}, map[int]error{1: errors.New("no")}[i])
		all.writing.Wait()
	}
	if _, err := all.add(&controlapi.SolveRequest{Ref: "now"}); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		req  *controlapi.BuildHistoryRequest
		want string
	}{
		{&controlapi.BuildHistoryRequest{}, "now a b c"},                               // those under way first
		{&controlapi.BuildHistoryRequest{ActiveOnly: true}, "now"},                     // no records
		{&controlapi.BuildHistoryRequest{Ref: "b"}, "b"},                               // one
		{&controlapi.BuildHistoryRequest{Limit: 2}, "now c b"},                         // the newest
		{&controlapi.BuildHistoryRequest{Filter: []string{"status==error"}}, "b"},      // containerd's language
		{&controlapi.BuildHistoryRequest{Filter: []string{"ref~=[ac]"}}, "a c"},        // a pattern
		{&controlapi.BuildHistoryRequest{Filter: []string{"ref==a", "ref==c"}}, "a c"}, // one of them
		{&controlapi.BuildHistoryRequest{Filter: []string{"duration>2m"}}, ""},         // none is so long
		{&controlapi.BuildHistoryRequest{Filter: []string{"startedAt>=90s"}}, "now c"}, // how long ago
		{&controlapi.BuildHistoryRequest{Filter: []string{"status==running"}}, "now"},  // under way
	} {
		l, stop, err := all.listen(test.req)
		if err != nil {
			t.Fatal(err)
		}
		stop()
		var got []string
		for _, e := range l.queue {
			got = append(got, e.Record.Ref)
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%v: got %v, want %s", test.req, got, test.want)
		}
	}
	for _, bad := range []*controlapi.BuildHistoryRequest{{Limit: -1}, {Filter: []string{"duration>x"}}, {Filter: []string{"startedAt<y"}}, {Filter: []string{"ref=("}}} {
		if _, _, err := all.listen(bad); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}

// TestWatcherOfRefusedRequest has those who would watch a request that became no build
// wait for nothing, whether they come before its refusal or after.
func TestWatcherOfRefusedRequest(t *testing.T) {
	all := newBuilds((&clock{now: time.Unix(1e9, 0)}).Now, nil, func(error) {})
	early := make(chan error, 1)
	watch := func(ctx context.Context) error {
		w, err := all.find(ctx, "refused")
		if err != nil {
			return err
		}
		return w.watch(ctx, func(*controlapi.StatusResponse) error { return errors.New("something to see") })
	}
	go func() { early <- watch(t.Context()) }()
	all.refuse("refused")
	if err := <-early; err != nil {
		t.Errorf("before the refusal: %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end() // who waits gets an error
	if err := watch(ended); err != nil {
		t.Errorf("after it: %v", err)
	}
	b, err := all.add(&controlapi.SolveRequest{Ref: "refused"})
	if err != nil {
		t.Fatal(err)
	}
	if w, err := all.find(ended, "refused"); err != nil || w != watched(held{b}) {
		t.Errorf("a build with the ref is %v, %v", w, err)
	}
	for i := range maxRefused {
		all.refuse(fmt.Sprint("other ", i))
	}
	if len(all.refused) != maxRefused {
		t.Errorf("%d refusals are remembered, want %d", len(all.refused), maxRefused)
	}
}
