package source

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/cache/blob"
)

// gzipped compresses a text.
func gzipped(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The file's digest is that of its own bytes, however they travel.
func TestHTTPEncoding(t *testing.T) {
	packed := gzipped(t, "hello")
	sum := func(data []byte) string { return blob.Digest(sha256.Sum256(data)).String() }
	for _, test := range []struct {
		name, encoding string
		body           []byte
		checksum       string
		want           string // the file, or what the error says
	}{
		{"plain", "", []byte("hello"), "", "f=hello"},
		{"packed", "gzip", packed, "", "f=hello"},
		{"packed, by its old name", "X-Gzip", packed, "", "f=hello"},
		{"packed twice over, one behind the other", "gzip", append(packed[:len(packed):len(packed)], packed...), "", "f=hellohello"},
		{"a file that is packed itself", "", packed, "", "f=" + string(packed[:20])},
		{"packed, with the checksum of the file", "gzip", packed, sum([]byte("hello")), "f=hello"},
		// x.tar.gz, which the server takes for x.tar on its way.
		{"packed, with the checksum of what came", "gzip", packed, sum(packed), "f=" + string(packed[:20])},
		{"packed, with another checksum", "gzip", packed, sum(nil), "was expected"},
		{"not packed at all", "gzip", []byte("hello"), "", "gzip"},
		{"nothing", "gzip", nil, "", "gzip"},
		{"cut off", "gzip", packed[:len(packed)-3], "", "unexpected EOF"},
		{"changed on the way", "gzip", append(packed[:len(packed)-8:len(packed)-8], "12345678"...), "", "gzip"},
		{"rubbish behind it", "gzip", append(packed[:len(packed):len(packed)], "rubbish!!!"...), "", "gzip"},
	} {
		w := newWebServer(t)
		asked := ""
		w.handle = func(rw http.ResponseWriter, r *http.Request) {
			asked = r.Header.Get("Accept-Encoding")
			if test.encoding != "" {
				rw.Header().Set("Content-Encoding", test.encoding)
			}
			_, _ = rw.Write(test.body)
		}
		op := &pb.SourceOp{Identifier: w.URL + "/f", Attrs: map[string]string{}}
		want := "gzip"
		if test.checksum != "" {
			op.Attrs[pb.AttrHTTPChecksum], want = test.checksum, "identity"
		}
		c := openCache(t, t.TempDir())
		got, _, err := file(t, c, NewHTTP(c), op)
		if err != nil {
			got = err.Error()
		}
		if (err == nil) != strings.HasPrefix(test.want, "f=") || !strings.Contains(got, test.want) || asked != want {
			t.Errorf("%s: got %q, asked for %s; want %q and %s", test.name, got, asked, test.want, want)
		}
	}
}

func TestHTTPBomb(t *testing.T) {
	w := newWebServer(t)
	packed := gzipped(t, strings.Repeat("0", 4<<20))
	w.handle = func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Encoding", "gzip")
		_, _ = rw.Write(packed)
	}
	c := openCache(t, t.TempDir())
	s := NewHTTP(c)
	s.MaxSize = 1 << 20
	if _, _, err := file(t, c, s, &pb.SourceOp{Identifier: w.URL + "/f"}); err == nil || !strings.Contains(err.Error(), "once decompressed") {
		t.Errorf("got %v, want that it is too large", err)
	}
}

// A URL may give again what it gave before, and a server may give tags and not look
// at those that it is sent.
func TestHTTPTags(t *testing.T) {
	w := newWebServer(t)
	tag, heeds := "", true
	w.handle = func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("ETag", tag)
		if heeds && slices.Contains(strings.Split(r.Header.Get("If-None-Match"), ", "), tag) {
			rw.WriteHeader(http.StatusNotModified)
			return
		}
		if r.Method == http.MethodGet {
			_, _ = rw.Write([]byte(w.text))
		}
	}
	c := openCache(t, t.TempDir())
	s := NewHTTP(c)
	for _, step := range []struct {
		tag, text string
		heeds     bool
		log       []string
	}{
		{`"1"`, "one", true, []string{"GET "}},
		{`"2"`, "two", true, []string{`HEAD "1"`, `GET "1"`}},
		{`"2"`, "two", false, []string{`HEAD "2", "1"`}},
		{`"1"`, "one", true, []string{`HEAD "2", "1"`}},
		{`"1"`, "one", true, []string{`HEAD "1", "2"`}},
		{`W/"1"`, "one", false, []string{`HEAD "1", "2"`}},
	} {
		tag, w.text, heeds, w.log = step.tag, step.text, step.heeds, nil
		got, _, err := file(t, c, s, &pb.SourceOp{Identifier: w.URL + "/f"})
		if err != nil || got != "f="+step.text || !slices.Equal(w.log, step.log) {
			t.Errorf("%+v: got %q, %v, with the requests %q", step, got, err, w.log)
		}
	}
	// Tags are a URL's own.
	w.text, w.log = "another", nil
	if got, _, err := file(t, c, s, &pb.SourceOp{Identifier: w.URL + "/g"}); err != nil || got != "g=another" || len(w.log) != 1 {
		t.Errorf("another URL with the same tag: got %q, %v, with the requests %q", got, err, w.log)
	}
}

// What a server says of a file is not sent back to it whatever it is.
func TestHTTPOddTags(t *testing.T) {
	w := newWebServer(t)
	c := openCache(t, t.TempDir())
	for _, header := range []map[string]string{
		{"ETag": `"` + strings.Repeat("x", 10_000) + `"`},
		{"Last-Modified": strings.Repeat("x", 10_000)},
	} {
		w.header = header
		for range 2 {
			w.log = nil
			got, _, err := file(t, c, NewHTTP(c), &pb.SourceOp{Identifier: w.URL + "/f"})
			if err != nil || got != "f=hello" || !slices.Equal(w.log, []string{"GET "}) {
				t.Errorf("got %q, %v, with the requests %.80q", got, err, w.log)
			}
		}
	}
}
