package main

import (
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
)

// counter stands before a registry and counts what goes through: requests, and the
// bytes of their bodies and of the answers', either way.
type counter struct {
	addr            string
	requests, moved atomic.Int64
	server          *http.Server
}

// countBefore starts a counter on this machine before the registry at addr.
func countBefore(addr string) (*counter, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &counter{addr: l.Addr().String()}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: addr})
			// The registry makes the addresses that it tells of this.
			r.Out.Host = r.In.Host
		},
		Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64},
		FlushInterval: -1,
	}
	c.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.requests.Add(1)
		r.Body = &countedBody{r.Body, &c.moved}
		proxy.ServeHTTP(&countedAnswer{w, &c.moved}, r)
	})}
	go c.server.Serve(l)
	return c, nil
}

func (c *counter) reset() {
	c.requests.Store(0)
	c.moved.Store(0)
}

func (c *counter) close() { c.server.Close() }

// countedBody counts what is read of a request.
type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// countedAnswer counts what is written of an answer.
type countedAnswer struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (a *countedAnswer) Write(p []byte) (int, error) {
	n, err := a.ResponseWriter.Write(p)
	a.n.Add(int64(n))
	return n, err
}

// Unwrap lets the proxy flush.
func (a *countedAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
