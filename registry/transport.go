package registry

import (
	"errors"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// httpClient gives the client of an endpoint. All that speak to one endpoint
// share its connections.
func (c *Client) httpClient(e endpoint) (*http.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.transports[e.host]; t != nil {
		return &http.Client{Transport: t}, nil
	}
	conf, err := e.config.tlsConfig()
	if err != nil {
		return nil, err
	}
	l := c.limits()
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: l.Dial, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       conf,
		TLSHandshakeTimeout:   l.Dial,
		ResponseHeaderTimeout: l.Header,
		// Go's default of 10 MB, for each of many requests, is the registry's to fill.
		MaxResponseHeaderBytes: 1 << 20,
		ForceAttemptHTTP2:      true,
		// As many as layers are fetched at once; the default of 2 would open new ones.
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
		// A layer labelled with "Content-Encoding: gzip" must not be unzipped under way.
		DisableCompression: true,
	}
	long := t.Clone()
	long.ResponseHeaderTimeout = 0 // those requests have their own
	var rt http.RoundTripper = answering{usual: t, patient: long}
	if _, fallback := e.scheme(); fallback {
		rt = &plainFallback{over: rt}
	}
	if c.transports == nil {
		c.transports = make(map[string]http.RoundTripper)
	}
	c.transports[e.host] = rt
	return &http.Client{Transport: rt}, nil
}

// plainFallback speaks plain HTTP to a server that turns out not to speak TLS.
// It is for hosts with both http and insecure set, as BuildKit reads that.
type plainFallback struct {
	over  http.RoundTripper
	plain atomic.Bool // the server was found not to speak TLS
}

func (f *plainFallback) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" {
		return f.over.RoundTrip(req)
	}
	if !f.plain.Load() {
		resp, err := f.over.RoundTrip(req)
		if err == nil || !notTLS(err) {
			return resp, err
		}
		f.plain.Store(true)
	}
	again := req.Clone(req.Context())
	again.URL.Scheme = "http"
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, err
		}
		again.Body = body
	}
	return f.over.RoundTrip(again)
}

// notTLS reports whether err says that a server does not speak TLS. Of a port
// that is closed to TLS it cannot be told, and so that one is not meant.
func notTLS(err error) bool {
	return errors.Is(err, http.ErrSchemeMismatch) || strings.Contains(err.Error(), "first record does not look like a TLS handshake")
}
