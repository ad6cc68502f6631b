package source

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/solver"
)

func TestBlobOfRepository(t *testing.T) {
	proxy, p := start(t)
	d := p.blob("application/octet-stream", []byte("payload"))
	c := openCache(t, t.TempDir())
	s := NewBlob(c, client())
	op := &pb.SourceOp{Identifier: "docker-image+blob://" + p.repo + "@" + d.Digest.String()}
	got, e, err := file(t, c, s, op)
	if want := hex.EncodeToString(d.Digest[:]) + "=payload"; err != nil || got != want || e.Mode != 0o600 || e.MTime != 0 || e.UID != 0 {
		t.Errorf("got %q, %+v, %v; want %q", got, e, err, want)
	}
	op.Attrs = map[string]string{pb.AttrHTTPFilename: "../dir/layer.tgz", pb.AttrHTTPPerm: "0640", pb.AttrHTTPUID: "123", pb.AttrHTTPGID: "456"}
	got, e, err = file(t, c, s, op)
	if err != nil || got != "layer.tgz=payload" || e.Mode != 0o640 || e.UID != 123 || e.GID != 456 {
		t.Errorf("with attributes: got %q, %+v, %v", got, e, err)
	}
	// What is here is not sent again, and is had of a repository only that has it.
	proxy.Break(nil)
	if got, _, err := file(t, c, s, op); err != nil || got != "layer.tgz=payload" {
		t.Errorf("once more: got %q, %v", got, err)
	}
	if log := proxy.Log(); len(log) != 1 || !strings.HasPrefix(log[0], "HEAD") {
		t.Errorf("a file that is here took the requests %q, want one HEAD", log)
	}
	if err := c.Blobs().Put(t.Context(), d.Digest, d.Size, strings.NewReader("payload")); err != nil {
		t.Fatal(err)
	}
	proxy.Break(nil)
	op.Attrs[pb.AttrHTTPFilename] = "again"
	if got, _, err := file(t, c, s, op); err != nil || got != "again=payload" {
		t.Errorf("got %q, %v", got, err)
	}
	if log := proxy.Log(); len(log) != 1 || !strings.HasPrefix(log[0], "HEAD") {
		t.Errorf("a blob that is here took the requests %q, want one HEAD", log)
	}
	other := &pb.SourceOp{Identifier: "docker-image+blob://" + strings.TrimSuffix(p.repo, "/app") + "/other@" + d.Digest.String()}
	if got, _, err := file(t, c, s, other); err == nil {
		t.Errorf("a repository that does not have the blob gave %q", got)
	}
	// Registries keep manifests apart; they have digests too.
	m := p.image("v1", testImage{layers: [][]byte{testTar(t, "a=1")}})
	op = &pb.SourceOp{Identifier: "docker-image+blob://" + p.repo + "@" + m.Digest.String(), Attrs: map[string]string{pb.AttrHTTPFilename: "m"}}
	if got, _, err := file(t, c, s, op); err != nil || !strings.HasPrefix(got, `m={`) {
		t.Errorf("a manifest: got %q, %v", got, err)
	}
	s.MaxSize = 3
	if _, _, err := file(t, c, s, op); err == nil || !strings.Contains(err.Error(), "3 at most") {
		t.Errorf("a blob beyond the bound: %v", err)
	}
}

// A server's word is not believed: neither a digest nor a size.
func TestBlobThatLies(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	size := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return
		}
		if size != "" {
			w.Header().Set("Content-Length", size)
		} else if r.Method == http.MethodGet {
			w.(http.Flusher).Flush() // no length
		}
		if r.Method == http.MethodGet {
			_, _ = w.Write([]byte("evil"))
		}
	}))
	defer server.Close()
	c := openCache(t, t.TempDir())
	s := NewBlob(c, client())
	op := &pb.SourceOp{Identifier: "docker-image+blob://" + strings.TrimPrefix(server.URL, "http://") + "/app@" + blob.Digest{1}.String()}
	for _, test := range []struct{ size, want string }{
		{"4", "digest"},                    // other bytes
		{"", "how large"},                  // no length at all
		{"9000000000000000000", "at most"}, // more than any disk has
	} {
		size = test.size
		if _, _, err := file(t, c, s, op); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("with the length %q: got %v, want an error with %q", test.size, err, test.want)
		}
	}
}

// memLayout is a layout in memory.
type memLayout map[blob.Digest]string

func (l memLayout) Blob(_ context.Context, d blob.Digest) (io.ReadCloser, error) {
	text, ok := l[d]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(strings.NewReader(text)), nil
}

func TestBlobOfLayout(t *testing.T) {
	d, err := blob.Parse("sha256:239f59ed55e737c77147cf55ad0c1b030b6d7ee748a7426952f9b852d5a935e5") // of "payload"
	if err != nil {
		t.Fatal(err)
	}
	lie := blob.Digest{3}
	lent := memLayout{d: "payload", lie: "payload", {4}: "more than that"}
	c := openCache(t, t.TempDir())
	s := NewBlob(c, client())
	s.Store = func(_ context.Context, _ *solver.Job, name string) (BlobReader, error) {
		switch name {
		case "mine":
			return lent, nil
		case "empty":
			return memLayout{}, nil
		}
		return nil, fs.ErrNotExist
	}
	op := func(d blob.Digest, store string) *pb.SourceOp {
		return &pb.SourceOp{Identifier: "oci-layout+blob://not/real@" + d.String(), Attrs: map[string]string{pb.AttrOCILayoutStoreID: store, pb.AttrHTTPFilename: "f"}}
	}
	for range 2 { // the second time what is here is taken
		if got, _, err := file(t, c, s, op(d, "mine")); err != nil || got != "f=payload" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if _, _, err := file(t, c, s, op(d, "empty")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a layout that does not have the blob: %v", err)
	}
	if _, _, err := file(t, c, s, op(d, "other")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such layout: %v", err)
	}
	if _, _, err := file(t, c, s, op(d, "")); err == nil || !strings.Contains(err.Error(), "names the layout") {
		t.Errorf("without a layout's name: %v", err)
	}
	if _, _, err := file(t, c, s, op(lie, "mine")); err == nil {
		t.Error("bytes of another digest were taken")
	}
	s.MaxSize = 3
	if _, _, err := file(t, c, s, op(blob.Digest{4}, "mine")); err == nil || !strings.Contains(err.Error(), "more than the 3 bytes") {
		t.Errorf("a blob beyond the bound: %v", err)
	}
	if left, err := os.ReadDir(c.Path("tmp")); err != nil || len(left) != 0 {
		t.Errorf("%d temporary files are left, %v", len(left), err)
	}
}

func TestParseBlob(t *testing.T) {
	digest := "@" + blob.Digest{1}.String()
	for id, want := range map[string]string{
		"docker-image+blob://example.com/a":                      "no digest",    // which blob?
		"docker-image+blob://example.com/a:v1" + digest:          "has a tag",    // blobs have none
		"docker-image+blob://example.com/A B" + digest:           "not an image", // no reference
		"oci-layout+blob://@sha256:12":                           "no digest",    // nor a name
		"oci-layout+blob://a@sha256:12":                          "sha256",       // too short
		"oci-layout+blob://a@sha512:" + strings.Repeat("ab", 64): "sha256",       // another algorithm
		"oci-layout://a" + digest:                                "neither",      // another kind of source
	} {
		if _, err := parseBlobPlace(id, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", id, err, want)
		}
	}
	op := &pb.SourceOp{Identifier: "docker-image+blob://example.com/a" + digest, Attrs: map[string]string{pb.AttrHTTPUID: "-1"}}
	if _, _, err := parseBlob(op); err == nil || !strings.Contains(err.Error(), pb.AttrHTTPUID) {
		t.Errorf("a bad owner: %v", err)
	}
}
