// Package proxy is the way out of the network of steps that are kept apart from it.
//
// A Proxy answers the requests of one step, over HTTP, and over TLS by standing for
// each host with a certificate of its own Authority. It asks whether a request may be
// made (Rules), makes it, and takes down what the step got (Record). A step is not
// trusted: what it may take of memory, connections and time is bounded, and nothing
// but HTTP gets through.
package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Rules say what may be asked for.
type Rules interface {
	// Admit judges a request for a URL, and gives the one to ask in its place, which
	// is mostly the same. What it refuses is an error.
	Admit(ctx context.Context, url string) (string, error)
}

// Bounds of what one step may take.
const (
	maxConnections = 256
	maxHeader      = 64 << 10
	maxURL         = 8 << 10
	headerTime     = 30 * time.Second
	idleTime       = 2 * time.Minute
	dialTime       = 30 * time.Second
)

// A Proxy serves one step. It is safe for concurrent use.
type Proxy struct {
	authority *Authority
	rules     Rules // nil admits all
	transport *http.Transport
	log       log

	plain, tunnel *http.Server
	tunnels       *queue
	ctx           context.Context // ends with the proxy
	cancel        context.CancelFunc
	running       sync.WaitGroup // requests and tunnels
	mu            sync.Mutex     // guards closed
	closed        bool
}

// New makes a proxy. What it asks goes the way that the builder's own environment
// names (HTTP_PROXY, HTTPS_PROXY, NO_PROXY), or straight there.
func New(a *Authority, rules Rules) (*Proxy, error) {
	if err := checkUpstream(); err != nil {
		return nil, err
	}
	p := &Proxy{
		authority: a, rules: rules, tunnels: newQueue(),
		transport: &http.Transport{
			Proxy:              http.ProxyFromEnvironment,
			DialContext:        (&net.Dialer{Timeout: dialTime}).DialContext,
			DisableCompression: true, // the step gets what the host sends
			ForceAttemptHTTP2:  true, MaxIdleConnsPerHost: 16, IdleConnTimeout: idleTime,
			TLSHandshakeTimeout: headerTime, MaxResponseHeaderBytes: 1 << 20,
		},
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	server := func(h http.HandlerFunc) *http.Server {
		return &http.Server{Handler: h, ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader, ErrorLog: silent()}
	}
	p.plain, p.tunnel = server(p.servePlain), server(p.serveTunnel)
	p.tunnel.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, targetKey{}, c.(*tls.Conn).NetConn().(*tunnelConn).target)
	}
	return p, nil
}

// Serve answers those who connect to l, until Close.
func (p *Proxy) Serve(l net.Listener) {
	if !p.begin() {
		l.Close()
		return
	}
	go func() {
		defer p.running.Done()
		p.tunnel.Serve(p.tunnels)
	}()
	p.plain.Serve(&bounded{Listener: l, free: make(chan struct{}, maxConnections), ended: p.ctx.Done()})
}

// Close ends all requests, and waits for them.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.plain.Close()
	p.tunnels.Close()
	p.tunnel.Close()
	p.running.Wait()
	p.transport.CloseIdleConnections()
}

// Record gives what was asked for until now.
func (p *Proxy) Record() Record { return p.log.all() }

// begin counts something in that Close is to wait for; false once it is too late.
func (p *Proxy) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.running.Add(1)
	return true
}

// servePlain answers a request that came to the proxy itself.
func (p *Proxy) servePlain(w http.ResponseWriter, r *http.Request) {
	if !p.begin() {
		return
	}
	defer p.running.Done()
	if r.Method == http.MethodConnect {
		p.connect(w, r)
		return
	}
	// Some programs leave TLS to the proxy: busybox's wget asks it for https:// URLs.
	if r.URL.Scheme != "http" && r.URL.Scheme != "https" || !isHost(r.URL.Hostname()) {
		http.Error(w, "this is a proxy: ask it for URLs with a host, or by CONNECT", http.StatusBadRequest)
		return
	}
	p.answer(w, r)
}

// targetKey is the context's key of the host and port that a tunnel was asked for.
type targetKey struct{}

// serveTunnel answers a request that was made to a host, over TLS.
func (p *Proxy) serveTunnel(w http.ResponseWriter, r *http.Request) {
	if !p.begin() {
		return
	}
	defer p.running.Done()
	target, _ := r.Context().Value(targetKey{}).(string)
	if r.Method == http.MethodConnect || r.URL.IsAbs() || !strings.HasPrefix(r.URL.Path, "/") {
		http.Error(w, "no proxy is here", http.StatusBadRequest)
		return
	}
	// Many hosts are behind one address: the one that is judged must be the one that answers.
	if r.Host != "" && hostName(r.Host) != hostName(target) {
		http.Error(w, "the tunnel is to another host", http.StatusMisdirectedRequest)
		return
	}
	r.URL.Scheme, r.URL.Host = "https", target
	p.answer(w, r)
}

// hostName gives the name, or the address, of a host with or without a port, in one form.
func hostName(host string) string {
	u := url.URL{Host: host}
	return strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
}

// connect begins a tunnel: the step's TLS ends here.
func (p *Proxy) connect(w http.ResponseWriter, r *http.Request) {
	host, port, err := net.SplitHostPort(r.Host)
	if err != nil || port == "" || !isHost(host) {
		http.Error(w, "CONNECT wants a host and a port", http.StatusBadRequest)
		return
	}
	cert, err := p.authority.certificate(host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	conn.SetDeadline(time.Time{})
	if _, err := io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		conn.Close()
		return
	}
	// HTTP/2 is not offered: one request at a time is what is judged and taken down.
	c := tls.Server(&tunnelConn{Conn: conn, early: buffered.Reader, target: net.JoinHostPort(host, port)},
		&tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{"http/1.1"}})
	if !p.tunnels.put(c) {
		conn.Close()
	}
}

// isHost reports whether a text is a host's name or address as it goes over the wire.
// Names in other scripts are refused: what is judged would be another name than the one
// that Go makes of it.
func isHost(host string) bool {
	odd := func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("/@?#%", r) }
	return host != "" && len(host) <= 255 && !strings.ContainsFunc(host, odd)
}

// answer makes the request that r stands for, if it may be made.
func (p *Proxy) answer(w http.ResponseWriter, r *http.Request) {
	if len(r.URL.String()) > maxURL {
		http.Error(w, "the URL is too long", http.StatusRequestURITooLong)
		return
	}
	if err := p.admit(r); err != nil {
		p.log.request(Request{Method: r.Method, URL: public(r.URL), Status: http.StatusForbidden})
		http.Error(w, "Forbidden: "+err.Error(), http.StatusForbidden)
		return
	}
	shown := public(r.URL)
	miss := func(reason string) { p.log.missed(Missed{Method: r.Method, URL: shown, Reason: reason}) }
	resp, err := p.ask(r)
	if err != nil {
		p.log.request(Request{Method: r.Method, URL: shown, Status: http.StatusBadGateway})
		miss(reasonSilence)
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	p.log.request(Request{Method: r.Method, URL: shown, Status: resp.StatusCode, Location: location(r.URL, resp)})
	dropHopByHop(resp.Header)
	w.Header()["Date"], w.Header()["Content-Type"] = nil, nil // or Go would add its own
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	body := &digester{from: resp.Body, hash: sha256.New()}
	_, err = io.Copy(flusher{w}, body)
	switch {
	case r.Method != http.MethodGet:
		miss(reasonMethod)
	case r.Header.Get("Range") != "" || resp.StatusCode == http.StatusPartialContent:
		miss(reasonPart)
	case err != nil:
		miss(reasonBody)
	case resp.StatusCode >= 400:
		miss(reasonStatus)
	case resp.StatusCode < 300:
		p.log.file(File{URL: shown, Digest: "sha256:" + hex.EncodeToString(body.hash.Sum(nil))})
	}
	if err != nil {
		panic(http.ErrAbortHandler) // so that the step does not take a part for the whole
	}
}

// admit judges a request, and changes it where the rules want another one made.
func (p *Proxy) admit(r *http.Request) error {
	if p.rules == nil {
		return nil
	}
	asked := public(r.URL)
	to, err := p.rules.Admit(p.ctx, asked)
	if err != nil || to == asked {
		return err
	}
	if r.Method != http.MethodGet {
		return fmt.Errorf("the policies put another URL in the place of %s, which they can for GET only", asked)
	}
	u, err := url.Parse(to)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("the policies put something in the place of %s that is no URL of http or https", asked)
	}
	// What the step says of itself to one host is none of the other's business.
	r.Header.Del("Authorization")
	r.Header.Del("Cookie")
	r.URL, r.Host = u, u.Host
	return nil
}

// ask makes a request. It goes on when the step has stopped sending, as some do that
// still wait for the answer, and ends with the proxy.
func (p *Proxy) ask(r *http.Request) (*http.Response, error) {
	out := r.Clone(p.ctx)
	dropHopByHop(out.Header)
	out.Header.Del("Accept-Encoding") // what is taken down is the file itself
	out.RequestURI, out.Close = "", false
	if r.ContentLength == 0 {
		out.Body = nil
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = nil // Go would add its own
	}
	return p.transport.RoundTrip(out)
}

// hopByHop are headers of one connection.
var hopByHop = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

func dropHopByHop(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range hopByHop {
		h.Del(name)
	}
}

func location(from *url.URL, resp *http.Response) string {
	to := resp.Header.Get("Location")
	if to == "" {
		return ""
	}
	u, err := from.Parse(to)
	if err != nil {
		return ""
	}
	return public(u)
}

// digester makes the digest of what is read.
type digester struct {
	from io.Reader
	hash hash.Hash
}

func (d *digester) Read(b []byte) (int, error) {
	n, err := d.from.Read(b)
	d.hash.Write(b[:n])
	return n, err
}

// flusher passes on at once what arrives: a step may wait for a part of an answer.
type flusher struct{ w http.ResponseWriter }

func (f flusher) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if err == nil {
		err = http.NewResponseController(f.w).Flush()
	}
	if errors.Is(err, http.ErrNotSupported) {
		err = nil
	}
	return n, err
}
