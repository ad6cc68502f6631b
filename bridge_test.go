package kiln

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	spb "github.com/moby/buildkit/sourcepolicy/pb"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// frontendFunc is a frontend that asks the bridge something, and builds nothing.
type frontendFunc func(ctx context.Context, b frontend.Bridge) error

func (f frontendFunc) Build(ctx context.Context, _ frontend.Request, b frontend.Bridge) (*frontend.Result, error) {
	return &frontend.Result{Metadata: map[string][]byte{"result.txt": []byte("done")}}, f(ctx, b)
}

// ask runs f in a build, as a frontend that answers a question.
func ask(t *testing.T, f frontendFunc) {
	t.Helper()
	e, err := Open(t.Context(), Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	r, err := e.Build(t.Context(), Request{Context: t.TempDir(), Frontend: f, Call: "outline"})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Metadata["result.txt"]; got != "done" {
		t.Errorf("the answer is %q, want %q", got, "done")
	}
}

// A policy holds for the question of a source's time too: a server that a build may not
// ask is not asked.
func TestSourceTimeUnderPolicy(t *testing.T) {
	asked := false
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer srv.Close()
	e, err := Open(t.Context(), Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	v, err := llb.Source(srv.URL+"/file", nil)
	if err != nil {
		t.Fatal(err)
	}
	ask := frontendFunc(func(ctx context.Context, b frontend.Bridge) error {
		_, err := b.(frontend.SourceDescriber).SourceTime(ctx, v)
		return err
	})
	policy := &spb.Policy{Rules: []*spb.Rule{{Action: spb.PolicyAction_DENY, Selector: &spb.Selector{Identifier: "http://*"}}}}
	if _, err := e.Build(t.Context(), Request{Context: t.TempDir(), Frontend: ask, Call: "outline", SourcePolicy: policy}); err == nil || asked {
		t.Errorf("got %v, and the server was asked: %v", err, asked)
	}
}

func TestBridgeDescribesAndReadsSources(t *testing.T) {
	modified := time.Unix(1e9, 0)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", modified, strings.NewReader("0123456789"))
	}))
	defer srv.Close()
	ask(t, func(ctx context.Context, b frontend.Bridge) error {
		v, err := llb.Source(srv.URL+"/file", map[string]string{"http.filename": "file"})
		if err != nil {
			return err
		}
		got, err := b.(frontend.SourceDescriber).SourceTime(ctx, v)
		if err != nil || !got.Equal(modified) {
			t.Errorf("time = %v, %v, want %v", got, err, modified)
		}
		ref, err := b.Solve(ctx, v.Output(0))
		if err != nil {
			return err
		}
		for _, c := range []struct {
			offset, n int64
			want      string
		}{
			{0, 4, "0123"},             // the head
			{3, 4, "3456"},             // from within
			{8, 100, "89"},             // over the end
			{10, 1, ""},                // at the end
			{1 << 40, 10, ""},          // far behind it
			{0, 1 << 40, "0123456789"}, // all, whatever its size
		} {
			got, err := ref.(frontend.RangeReader).ReadRange(ctx, "file", c.offset, c.n)
			if err != nil || string(got) != c.want {
				t.Errorf("%d bytes from %d = %q, %v, want %q", c.n, c.offset, got, err, c.want)
			}
		}
		if _, err := ref.(frontend.RangeReader).ReadRange(ctx, "file", -1, 1); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("reading from before the file: %v, want an error", err)
		}
		if _, err := ref.(frontend.RangeReader).ReadRange(ctx, "nothere", 0, 1); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("reading a file that is not there: %v, want fs.ErrNotExist", err)
		}
		return nil
	})
}
