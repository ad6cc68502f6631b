package kiln

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/explain"
	"github.com/kiln-build/kiln/journal"
	"github.com/kiln-build/kiln/worker"
)

func TestProject(t *testing.T) {
	for _, c := range []struct {
		what  string
		r     Request
		attrs map[string]string
		want  string
	}{
		{"a folder", Request{Context: "/src/app"}, nil, "/src/app"},
		{"a Dockerfile of another name, and a stage", Request{Context: "/src"}, map[string]string{"filename": "Other", "target": "test"}, "/src (Other) --target test"},
		{"an address with a password", Request{Context: "https://user:secret@host/repo.git?token=x#main"}, nil, "https://host/repo.git#main"},
		{"an address that cannot be read", Request{Context: "https://user:se%zz@host/x"}, nil, "host/x"},
		{"a repository by ssh", Request{Context: "git@host:repo.git"}, nil, "host:repo.git"},
		{"a client's folder", Request{Session: &worker.Session{}}, nil, ""},
		{"a client's address", Request{Session: &worker.Session{}}, map[string]string{"context": "https://a:b@host/x"}, "https://host/x"},
	} {
		if got := project(&c.r, c.attrs); got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
	}
}

// A client's name for a build goes into a line of a file.
func TestIsName(t *testing.T) {
	for ref, want := range map[string]bool{
		"k3pt7q2mda": true, "builder/node": false, "": false, "a\tb": false, "a\nb": false, "A-b_c.9": true,
		strings.Repeat("a", 129): false,
	} {
		if got := journal.IsName(ref); got != want {
			t.Errorf("IsName(%q) = %v, want %v", ref, got, want)
		}
	}
}

func TestExplainWhatIsNot(t *testing.T) {
	e, err := Open(context.Background(), Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := e.Explain("last"); !errors.Is(err, explain.ErrNotFound) {
		t.Errorf("the last build of an empty folder: got %v, want ErrNotFound", err)
	}
	r := Request{Attrs: map[string]string{"requestid": callExplain, "kiln.build": "last"}}
	if _, err := e.Build(context.Background(), r); !errors.Is(err, explain.ErrNotFound) {
		t.Errorf("the same as a request: got %v, want ErrNotFound", err)
	}
	r.Attrs = map[string]string{"kiln.fail-on-miss": "[\"" + strings.Repeat("*", maxPattern+1) + "\"]"}
	if _, err := e.Build(context.Background(), r); err == nil || !strings.Contains(err.Error(), "--fail-on-miss takes") {
		t.Errorf("a pattern that is too long: got %v", err)
	}
}
