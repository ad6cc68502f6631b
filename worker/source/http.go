package source

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/solver"
)

// HTTP is the source of one file by its URL ("http://…", "https://…"). Its pin is
// the file's digest, name and time; with a checksum given the server is asked
// only when somebody reads the file and it is not here. It is safe for concurrent
// use.
type HTTP struct {
	// Secret gives a secret of a job's sessions, for logins; nil has none. One that
	// is not known wraps fs.ErrNotExist.
	Secret func(ctx context.Context, job *solver.Job, id string) ([]byte, error)
	// Upload reads what a job's sessions hand over under a path of SessionHost; nil
	// has nothing.
	Upload func(ctx context.Context, job *solver.Job, u *url.URL) (io.ReadCloser, error)
	// MaxSize bounds a file, in bytes; 0 leaves it to the disk.
	MaxSize int64

	cache  *cache.Cache
	client *http.Client
	known  *cache.Bucket // what URLs gave, see httpPast
	stall  time.Duration
	seen   seen[httpMemory]
}

// NewHTTP makes the source of a state folder.
func NewHTTP(c *cache.Cache) *HTTP {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = 60 * time.Second
	return &HTTP{cache: c, client: &http.Client{Transport: t}, known: c.Bucket("http"), stall: 30 * time.Second}
}

// SessionHost is no host: a URL below it names what a client sends over its session,
// the tarball that it builds from for one.
const SessionHost = "buildkit-session"

// httpOp is what the identifier and attributes of a source op say.
type httpOp struct {
	url      string
	checksum blob.Digest // what the file must have, where checked
	checked  bool
	fileAttrs
	header [][2]string
	secret string // the id of the Authorization header's; empty is by host
	signed fileSignature
}

// httpPin is the pin, as JSON.
type httpPin struct {
	Digest blob.Digest `json:"digest"`
	Name   string      `json:"name"`
	MTime  int64       `json:"mtime,omitempty"` // seconds
}

// parseHTTP reads a source op. The headers that a build may set are those of BuildKit.
func parseHTTP(op *pb.SourceOp) (*httpOp, error) {
	h := &httpOp{url: op.Identifier, fileAttrs: defaultFile}
	u, err := url.Parse(h.url)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%q is not an http or https URL", h.url)
	}
	for k, v := range op.Attrs {
		ours, err := h.fileAttrs.set(k, v)
		switch k {
		case pb.AttrHTTPChecksum:
			h.checked = true
			h.checksum, err = blob.Parse(v)
		case pb.AttrHTTPAuthHeaderSecret:
			h.secret = v
		default:
			ours = ours || h.signed.set(k, v)
			if name, ok := strings.CutPrefix(k, pb.AttrHTTPHeaderPrefix); ok {
				name = http.CanonicalHeaderKey(name)
				if name == "Accept" || name == "User-Agent" {
					h.header = append(h.header, [2]string{name, v})
				}
			} else if strings.HasPrefix(k, "http.") && !ours {
				err = errors.New("not supported by this version of kiln")
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: attribute %s: %w", u.Redacted(), k, err)
		}
	}
	if err := h.signed.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", u.Redacted(), err)
	}
	slices.SortFunc(h.header, func(a, b [2]string) int { return cmp.Compare(a[0], b[0]) })
	return h, nil
}

// redacted is the URL without a password, for people.
func (h *httpOp) redacted() string {
	u, err := url.Parse(h.url)
	if err != nil {
		return h.url
	}
	return u.Redacted()
}

// key is under what the answers of the URL are remembered.
func (h *httpOp) key() []byte {
	parts := []any{h.url, h.secret, h.header}
	if h.checked {
		parts = append(parts, "identity") // the server is asked for another form, see request
	}
	b, _ := json.Marshal(parts) // strings never fail
	return b
}

// Pin says what the URL stands for now, and verifies the signature that the op asks for.
func (s *HTTP) Pin(ctx context.Context, job *solver.Job, op *pb.SourceOp) (string, error) {
	h, err := parseHTTP(op)
	if err != nil {
		return "", err
	}
	pin := httpPin{Digest: h.checksum, Name: fileName(h, nil)}
	if !h.checked {
		m, err := s.ask(ctx, job, h)
		if err != nil {
			return "", err
		}
		pin = m.Pin
		if h.filename != "" {
			pin.Name = safeName(h.filename)
		}
	}
	if err := s.verify(ctx, job, h, pin.Digest); err != nil {
		return "", err
	}
	b, err := json.Marshal(pin)
	return string(b), err
}

// Chain gives the chain of one layer that holds the file.
func (s *HTTP) Chain(ctx context.Context, job *solver.Job, op *pb.SourceOp, text string) (cache.ChainID, error) {
	var none cache.ChainID
	h, err := parseHTTP(op)
	if err != nil {
		return none, err
	}
	var pin httpPin
	if err := json.Unmarshal([]byte(text), &pin); err != nil || pin.Name != safeName(pin.Name) {
		return none, fmt.Errorf("%s: %q is no pin of a file", h.redacted(), text)
	}
	size, err := s.present(ctx, job, h, pin)
	if err != nil {
		return none, err
	}
	e := h.entry(pin.Name, pin.Digest, size)
	e.MTime = pin.MTime * int64(time.Second)
	if err := s.pool(ctx, e); err != nil {
		return none, fmt.Errorf("%s: %w", h.redacted(), err)
	}
	id, err := oneFile(s.cache, e)
	if err != nil {
		return none, fmt.Errorf("%s: %w", h.redacted(), err)
	}
	return id, nil
}

// Time gives the time that the server says the file was last changed; zero where
// it says none.
func (s *HTTP) Time(ctx context.Context, job *solver.Job, op *pb.SourceOp) (time.Time, error) {
	h, err := parseHTTP(op)
	if err != nil {
		return time.Time{}, err
	}
	m, err := s.get(ctx, job, h)
	if err == nil && h.checked && m.Pin.Digest != h.checksum {
		err = fmt.Errorf("%s has the digest %s, and %s was expected", h.redacted(), m.Pin.Digest, h.checksum)
	}
	if err != nil || m.Pin.MTime == 0 {
		return time.Time{}, err
	}
	return time.Unix(m.Pin.MTime, 0).UTC(), nil
}

// present makes sure that the bytes of a pin are in the blob store, and gives
// their number. A checksum is no right to what it names: where nobody asked the server
// for the pin, it has to have given those bytes before.
func (s *HTTP) present(ctx context.Context, job *solver.Job, h *httpOp, pin httpPin) (int64, error) {
	if !h.checked || s.gave(h, pin.Digest) {
		if r, size, err := s.cache.Blobs().Open(pin.Digest); err == nil {
			return size, r.Close()
		}
	}
	m, err := s.get(ctx, job, h)
	if err != nil {
		return 0, err
	}
	if m.Pin.Digest != pin.Digest {
		return 0, fmt.Errorf("%s has the digest %s, and %s was expected", h.redacted(), m.Pin.Digest, pin.Digest)
	}
	return m.Size, nil
}

// pool makes the file of an entry out of the blob that has its content.
func (s *HTTP) pool(ctx context.Context, e tree.Entry) error {
	if s.cache.Pool().Has(e) {
		return nil
	}
	r, _, err := s.cache.Blobs().Open(e.Content)
	if err != nil {
		return err
	}
	defer r.Close()
	return s.cache.Pool().Put(ctx, e, r)
}

// get asks the server, with what it gave before to compare, and fetches the file
// where it is another one now.
func (s *HTTP) get(ctx context.Context, job *solver.Job, h *httpOp) (httpMemory, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	past := s.recall(h)
	if past.tags() != "" {
		m, ok, err := s.head(ctx, job, h, past)
		if ok || err != nil {
			return m, err
		}
	}
	req, err := s.request(ctx, job, h, http.MethodGet)
	if err != nil {
		return httpMemory{}, fmt.Errorf("%s: %w", h.redacted(), err)
	}
	past.ask(req)
	resp, err := s.do(ctx, job, req)
	if err != nil {
		return httpMemory{}, fmt.Errorf("fetching %s: %w", h.redacted(), withoutURL(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotModified {
		if m, ok := past.named(resp); ok {
			s.remember(h, past, m)
			return m, nil
		}
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return httpMemory{}, fmt.Errorf("fetching %s: the server answered %s (invalid response status %d)", h.redacted(), resp.Status, resp.StatusCode)
	}
	m, err := s.save(ctx, cancel, job, h, resp)
	if err != nil {
		return m, fmt.Errorf("fetching %s: %w", h.redacted(), err)
	}
	s.remember(h, past, m)
	return m, nil
}

// head asks whether the URL still has something that it had before. There are servers
// that give tags and do not look at those that they are sent: with HEAD they send the
// tag, and not the file. Whatever else comes of it, GET will say.
func (s *HTTP) head(ctx context.Context, job *solver.Job, h *httpOp, past httpPast) (m httpMemory, ok bool, err error) {
	req, err := s.request(ctx, job, h, http.MethodHead)
	if err != nil {
		return m, false, fmt.Errorf("%s: %w", h.redacted(), err)
	}
	past.ask(req)
	resp, err := s.do(ctx, job, req)
	if err != nil {
		return m, false, nil
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNotModified {
		return m, false, nil
	}
	if m, ok = past.named(resp); ok {
		s.remember(h, past, m)
	}
	return m, ok, nil
}

// withoutURL takes the URL out of an error, which may have a password in it.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// do sends a request: to its server, or to the client whose session it names.
func (s *HTTP) do(ctx context.Context, job *solver.Job, req *http.Request) (*http.Response, error) {
	if req.URL.Host != SessionHost {
		return s.client.Do(req)
	}
	if s.Upload == nil || job == nil {
		return nil, errors.New("the build has no session that could send it")
	}
	body, err := s.Upload(ctx, job, req.URL)
	if err != nil {
		return nil, err
	}
	return &http.Response{Status: "200 OK", StatusCode: http.StatusOK, Header: http.Header{}, Body: body, ContentLength: -1}, nil
}

// request makes the request, with what the sessions lend to log in.
func (s *HTTP) request(ctx context.Context, job *solver.Job, h *httpOp, method string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, h.url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "kiln")
	// How the bytes travel is no concern of their digest's, see plain. Of a file that
	// has a checksum nothing but its own bytes is asked for: servers that take the name
	// x.tar.gz for an encoding of x.tar say so less often then.
	req.Header.Set("Accept-Encoding", "gzip")
	if h.checked {
		req.Header.Set("Accept-Encoding", "identity")
	}
	for _, kv := range h.header {
		req.Header.Set(kv[0], kv[1])
	}
	if s.Secret == nil || job == nil {
		return req, nil
	}
	if h.secret != "" {
		v, err := s.Secret(ctx, job, h.secret)
		if err != nil {
			return nil, fmt.Errorf("the secret %q for its login: %w", h.secret, err)
		}
		req.Header.Set("Authorization", string(v))
		return req, nil
	}
	// Of a host that has both, the token counts, as with BuildKit.
	for _, kind := range [][2]string{{"HTTP_AUTH_HEADER_", ""}, {"HTTP_AUTH_TOKEN_", "Bearer "}} {
		v, err := s.Secret(ctx, job, kind[0]+req.URL.Hostname())
		if err == nil {
			req.Header.Set("Authorization", kind[1]+string(v))
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return req, nil
}

// save stores an answer's body.
func (s *HTTP) save(ctx context.Context, cancel context.CancelCauseFunc, job *solver.Job, h *httpOp, resp *http.Response) (httpMemory, error) {
	limit := s.MaxSize
	if limit <= 0 {
		var err error
		if limit, err = diskRoom(s.cache.Path("tmp")); err != nil {
			return httpMemory{}, err
		}
	}
	in := &httpBody{
		r: resp.Body, limit: limit, stall: s.stall, ctx: ctx, cancel: cancel,
		meter: newMeter(progressOf(job), h.redacted(), "downloading", 0, max(resp.ContentLength, 0)),
	}
	f, err := s.plain(h, resp, in, limit)
	if errors.Is(err, io.ErrUnexpectedEOF) && resp.ContentLength >= 0 && in.n < resp.ContentLength {
		err = fmt.Errorf("the server closed the connection after %d of %d bytes: %w", in.n, resp.ContentLength, err)
	}
	if err != nil {
		return httpMemory{}, err
	}
	defer f.Close()
	in.meter.done()
	if resp.ContentLength >= 0 && in.n != resp.ContentLength {
		return httpMemory{}, io.ErrUnexpectedEOF
	}
	if h.checked && f.digest != h.checksum {
		return httpMemory{}, fmt.Errorf("it has the digest %s, and %s was expected", f.digest, h.checksum)
	}
	if err := s.cache.Blobs().Put(ctx, f.digest, f.size, f); err != nil {
		return httpMemory{}, err
	}
	m := httpMemory{
		Pin:  httpPin{Digest: f.digest, Name: fileName(h, resp)},
		Size: f.size, ETag: tagOf(resp), Modified: resp.Header.Get("Last-Modified"),
	}
	t, err := http.ParseTime(m.Modified)
	switch {
	case err != nil:
		m.Modified = "" // it would be sent back, whatever it is
	case t.Unix() > 0:
		m.Pin.MTime = t.Unix()
	}
	return m, nil
}

// plain gives the file that an answer carries, without the gzip that it may travel in.
// Where the bytes as they came have the checksum that the op names, they are the file:
// it is a server that takes the name x.tar.gz for an encoding of x.tar.
func (s *HTTP) plain(h *httpOp, resp *http.Response, in *httpBody, limit int64) (*spooled, error) {
	tmp := s.cache.Path("tmp")
	encoding := strings.ToLower(resp.Header.Get("Content-Encoding"))
	if encoding != "gzip" && encoding != "x-gzip" {
		return spool(tmp, in)
	}
	var packed io.Reader = in
	if h.checked {
		f, err := spool(tmp, in)
		if err != nil || f.digest == h.checksum {
			return f, err
		}
		defer f.Close()
		packed = f
	}
	r, err := gzip.NewReader(packed)
	if err != nil {
		return nil, fmt.Errorf("the server says that it is compressed with gzip: %w", err)
	}
	f, err := spool(tmp, &bounded{r, limit})
	if err != nil {
		return nil, err
	}
	// What is behind the compressed bytes counts, too.
	if _, err := io.Copy(io.Discard, packed); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// fileName is what the file is called: as the op says, as the server says, or as
// the URL ends.
func fileName(h *httpOp, resp *http.Response) string {
	if h.filename != "" {
		return safeName(h.filename)
	}
	if resp != nil {
		_, params, err := mime.ParseMediaType(resp.Header.Get("Content-Disposition"))
		if name := params["filename"]; err == nil && name != "" && !strings.HasSuffix(name, "/") {
			return safeName(name)
		}
	}
	if u, err := url.Parse(h.url); err == nil {
		return safeName(u.Path)
	}
	return safeName("")
}
