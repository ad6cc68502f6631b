package registrytest

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// Fault is what a Proxy does to one request. The zero Fault lets it through.
type Fault struct {
	// Status is answered instead, with Header.
	Status int
	Header http.Header
	// After breaks the answer's body when so many bytes went through: by cutting
	// the connection, by Hang, or by changing the next byte with Corrupt. A request
	// that hangs after 0 bytes is not answered at all.
	After   int64
	Cut     bool
	Hang    bool
	Corrupt bool
	// Lost lets the request through, and gives no answer.
	Lost bool
	// Late lets the request through, and keeps its answer for so long.
	Late time.Duration
}

// Proxy forwards to a registry and breaks what Break says. It is safe for
// concurrent use; Break is called with one request at a time.
type Proxy struct {
	Host string

	mu    sync.Mutex
	fault func(r *http.Request, n int) Fault
	n     int
	log   []string
}

// NewProxy puts a proxy before the registry at host. It ends with the test.
func NewProxy(t testing.TB, host string) *Proxy {
	t.Helper()
	p := &Proxy{}
	target := &url.URL{Scheme: "http", Host: host}
	rp := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // so that Locations lead back here
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	stop := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f := p.next(r)
		if f.Status != 0 {
			for k, v := range f.Header {
				w.Header()[k] = v
			}
			w.WriteHeader(f.Status)
			return
		}
		if f.Late > 0 {
			answer := httptest.NewRecorder()
			rp.ServeHTTP(answer, r)
			select {
			case <-r.Context().Done():
			case <-time.After(f.Late):
			}
			maps.Copy(w.Header(), answer.Header())
			w.WriteHeader(answer.Code)
			_, _ = w.Write(answer.Body.Bytes())
			return
		}
		if f.Lost {
			rp.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		if f.Hang && f.After == 0 {
			select {
			case <-r.Context().Done():
			case <-stop:
			}
			panic(http.ErrAbortHandler)
		}
		if f.Cut || f.Hang || f.Corrupt {
			w = &breaking{ResponseWriter: w, fault: f, stop: stop, gone: r.Context().Done()}
		}
		rp.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = nil
	p.Host = strings.TrimPrefix(srv.URL, "http://")
	t.Cleanup(func() {
		close(stop)
		srv.CloseClientConnections()
		srv.Close()
	})
	return p
}

// Break sets what happens to each request from now on, the nth, from 0. nil lets
// all of them through.
func (p *Proxy) Break(fault func(r *http.Request, n int) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.n, p.log = fault, 0, nil
}

// Log gives the requests since Break, "GET /v2/…" each.
func (p *Proxy) Log() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.log...)
}

func (p *Proxy) next(r *http.Request) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.n
	p.n++
	p.log = append(p.log, r.Method+" "+r.URL.RequestURI())
	if p.fault == nil {
		return Fault{}
	}
	return p.fault(r, n)
}

// breaking is a response that goes wrong.
type breaking struct {
	http.ResponseWriter
	fault Fault
	sent  int64
	stop  <-chan struct{}
	gone  <-chan struct{}
}

func (b *breaking) Write(p []byte) (int, error) {
	left := b.fault.After - b.sent
	if left > int64(len(p)) || left < 0 {
		n, err := b.ResponseWriter.Write(p)
		b.sent += int64(n)
		return n, err
	}
	if b.fault.Corrupt {
		if left == int64(len(p)) {
			n, err := b.ResponseWriter.Write(p)
			b.sent += int64(n)
			return n, err
		}
		q := append([]byte(nil), p...)
		q[left] ^= 0x55
		b.fault.After = -1 // once
		b.sent = 0
		n, err := b.ResponseWriter.Write(q)
		return n, err
	}
	_, _ = b.ResponseWriter.Write(p[:left])
	b.Flush()
	if b.fault.Hang {
		select {
		case <-b.gone:
		case <-b.stop:
		}
	}
	panic(http.ErrAbortHandler)
}

// Flush sends what was written.
func (b *breaking) Flush() { _ = http.NewResponseController(b.ResponseWriter).Flush() }

// Unwrap is for http.ResponseController.
func (b *breaking) Unwrap() http.ResponseWriter { return b.ResponseWriter }

var _ io.Writer = (*breaking)(nil)
