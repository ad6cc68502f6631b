package history

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// start is when the tests' first build ended.
var start = time.Unix(1e9, 0)

func open(t *testing.T, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// add keeps a record with one attachment, the n-th minute's.
func add(t *testing.T, s *Store, ref string, n int, pinned bool) {
	t.Helper()
	d, err := s.Draft()
	if err != nil {
		t.Fatal(err)
	}
	logs, err := d.AttachBytes(LogsType, []byte("logs of "+ref))
	if err != nil {
		t.Fatal(err)
	}
	at := timestamppb.New(start.Add(time.Duration(n) * time.Minute))
	if err := d.Commit(&controlapi.BuildHistoryRecord{Ref: ref, CreatedAt: at, CompletedAt: at, Pinned: pinned, Logs: logs}); err != nil {
		t.Fatal(err)
	}
}

func refs(s *Store) string {
	var out []string
	for _, r := range s.List() {
		out = append(out, r.Ref)
	}
	return fmt.Sprint(out)
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{MaxEntries: 10})
	add(t, s, "../../etc", 1, false) // refs are a client's to choose
	add(t, s, "two", 2, false)
	if got, want := refs(s), "[../../etc two]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := s.Update("two", func(r *controlapi.BuildHistoryRecord) { r.Pinned = true }); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{MaxEntries: 10})
	if r, ok := s.Get("two"); !ok || !r.Pinned || r.Generation != 1 {
		t.Errorf("after a change and another start the record is %v", r)
	}
	f, size, err := s.OpenBlob(digest.FromString("logs of two"))
	if err != nil || size != int64(len("logs of two")) {
		t.Fatalf("the attachment has %d bytes, %v", size, err)
	}
	f.Close()
	if err := s.Delete("two"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.OpenBlob(digest.FromString("logs of two")); !errors.Is(err, ErrNotFound) {
		t.Errorf("the attachment of a deleted record: %v", err)
	}
	if err := s.Delete("two"); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleting again: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%d folders are left, want 1", len(left))
	}
}

func TestCollect(t *testing.T) {
	clock := func() time.Time { return start.Add(100 * time.Minute) }
	for _, test := range []struct {
		entries int
		age     time.Duration
		want    string
	}{
		{2, time.Minute, "[pinned three four]"},              // the newest stay
		{2, 99 * time.Minute, "[pinned one two three four]"}, // and the young ones
		{2, 98 * time.Minute, "[pinned two three four]"},     // an age of their own
		{9, time.Minute, "[pinned one two three four]"},      // there is room
		{0, time.Minute, "[pinned]"},                         // nothing but what is pinned
	} {
		dir := t.TempDir()
		s := open(t, dir, Options{MaxEntries: 100, Clock: clock})
		for i, ref := range []string{"pinned", "one", "two", "three", "four"} {
			add(t, s, ref, i, i == 0)
		}
		s = open(t, dir, Options{MaxEntries: test.entries, MaxAge: test.age, Clock: clock})
		if got := refs(s); got != test.want {
			t.Errorf("%d entries and %v: got %s, want %s", test.entries, test.age, got, test.want)
		}
	}
}

// TestDamage sees that what is not whole is removed, and the rest is there.
func TestDamage(t *testing.T) {
	for name, damage := range map[string]func(folder string) error{
		"an attachment is gone": func(f string) error { return os.Remove(filepath.Join(f, digest.FromString("logs of bad").Encoded())) },
		"an attachment is short": func(f string) error {
			return os.Truncate(filepath.Join(f, digest.FromString("logs of bad").Encoded()), 1)
		},
		"the record is gone":      func(f string) error { return os.Remove(filepath.Join(f, recordFile)) },
		"the record is garbage":   func(f string) error { return os.WriteFile(filepath.Join(f, recordFile), []byte("garbage"), 0o600) },
		"the record is another's": func(f string) error { return os.Rename(f, filepath.Join(filepath.Dir(f), folderOf("other"))) },
		"it was being written":    func(f string) error { return os.Rename(f, filepath.Join(filepath.Dir(f), draftPrefix+"x")) },
		"it is a link": func(f string) error {
			return errors.Join(os.RemoveAll(f), os.Symlink("/etc", f))
		},
	} {
		dir := t.TempDir()
		s := open(t, dir, Options{MaxEntries: 10})
		add(t, s, "good", 1, false)
		add(t, s, "bad", 2, false)
		if err := damage(filepath.Join(dir, folderOf("bad"))); err != nil {
			t.Fatal(err)
		}
		if got := refs(open(t, dir, Options{MaxEntries: 10})); got != "[good]" {
			t.Errorf("%s: the store has %s, want the good record", name, got)
		}
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("%s: %d folders are left, want 1", name, len(left))
		}
	}
}
