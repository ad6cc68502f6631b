package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
)

// rulesFunc are Rules made of a function.
type rulesFunc func(url string) (string, error)

func (f rulesFunc) Admit(_ context.Context, url string) (string, error) { return f(url) }

// hello is the digest of "hello".
const hello = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"

// site is a host that steps ask.
func site() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/hello", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })
	mux.HandleFunc("/there", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/hello", http.StatusFound) })
	mux.HandleFunc("/header", func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Date"] = nil
		fmt.Fprint(w, r.Header["Proxy-Authorization"], r.Header["Accept-Encoding"], r.Header["Authorization"], r.Header["X-Hop"])
	})
	mux.HandleFunc("/half", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		io.WriteString(w, "hello")
	})
	mux.HandleFunc("/post", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	return mux
}

// start serves a proxy, and gives a client that goes through it and trusts it. The
// proxy itself trusts the server where there is one.
func start(t *testing.T, rules Rules, server *httptest.Server) (*Proxy, *http.Client) {
	t.Helper()
	a, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(a, rules)
	if err != nil {
		t.Fatal(err)
	}
	p.transport.Proxy = nil
	if server != nil && server.TLS != nil {
		p.transport.TLSClientConfig = &tls.Config{RootCAs: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go p.Serve(l)
	t.Cleanup(p.Close)
	trust := x509.NewCertPool()
	if !trust.AppendCertsFromPEM(a.PEM()) {
		t.Fatal("the authority's certificate is none")
	}
	transport := &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: l.Addr().String(), User: url.UserPassword("u", "p")}),
		TLSClientConfig: &tls.Config{RootCAs: trust},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return p, &http.Client{Transport: transport}
}

func TestRequests(t *testing.T) {
	plain, secure := httptest.NewServer(site()), httptest.NewTLSServer(site())
	defer plain.Close()
	defer secure.Close()
	for _, server := range []*httptest.Server{plain, secure} {
		u := server.URL
		for _, c := range []struct {
			name, method, path string
			header             http.Header
			body               string
			want               string // status and body; a body that ends early has "!" behind it
			record             Record
		}{
			{name: "a file", path: "/hello", want: "200 hello", record: Record{
				Requests: []Request{{"GET", u + "/hello", 200, ""}}, Files: []File{{u + "/hello", hello}}}},
			{name: "by a redirect", path: "/there", want: "200 hello", record: Record{
				Requests: []Request{{"GET", u + "/there", 302, u + "/hello"}, {"GET", u + "/hello", 200, ""}},
				Files:    []File{{u + "/hello", hello}, {u + "/there", hello}}}},
			{name: "nothing there", path: "/none", want: "404 404 page not found\n", record: Record{
				Requests: []Request{{"GET", u + "/none", 404, ""}}, Missed: []Missed{{"GET", u + "/none", "unsuccessful_response"}}}},
			{name: "half a file", path: "/half", want: "200 hello!", record: Record{
				Requests: []Request{{"GET", u + "/half", 200, ""}}, Missed: []Missed{{"GET", u + "/half", "body_read_failed"}}}},
			{name: "a part of a file", path: "/hello", header: http.Header{"Range": {"bytes=1-2"}}, want: "200 hello", record: Record{
				Requests: []Request{{"GET", u + "/hello", 200, ""}}, Missed: []Missed{{"GET", u + "/hello", "partial_response"}}}},
			{name: "another method", method: "POST", path: "/post", body: "x", want: "200 x", record: Record{
				Requests: []Request{{"POST", u + "/post", 200, ""}}, Missed: []Missed{{"POST", u + "/post", "method_not_materializable"}}}},
			{name: "headers of the proxy's own", path: "/header", want: "200 [] [] [] []",
				header: http.Header{"Connection": {"X-Hop"}, "X-Hop": {"1"}, "Accept-Encoding": {"gzip"}}},
		} {
			t.Run(c.name+"/"+u[:5], func(t *testing.T) {
				p, client := start(t, nil, server)
				req, err := http.NewRequest(c.method, u+c.path, strings.NewReader(c.body))
				if err != nil {
					t.Fatal(err)
				}
				for k, v := range c.header {
					req.Header[k] = v
				}
				if got := result(client.Do(req)); got != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
				p.Close()
				if got := p.Record(); len(c.record.Requests) > 0 && !reflect.DeepEqual(got, c.record) {
					t.Errorf("recorded %+v, want %+v", got, c.record)
				}
			})
		}
	}
}

// result says how a request went.
func result(resp *http.Response, err error) string {
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	s := fmt.Sprint(resp.StatusCode, " ", string(body))
	if err != nil {
		s += "!"
	}
	return s
}

func TestRules(t *testing.T) {
	server := httptest.NewTLSServer(site())
	defer server.Close()
	host := server.Listener.Addr().String()
	var asked []string
	rules := rulesFunc(func(u string) (string, error) {
		asked = append(asked, u)
		switch {
		case strings.HasSuffix(u, "/denied"):
			return "", errors.New("no")
		case strings.HasSuffix(u, "/other"):
			return "https://" + host + "/header", nil
		case strings.HasSuffix(u, "/file"):
			return "file:///etc/passwd", nil
		}
		return u, nil
	})
	for _, c := range []struct{ name, method, url, want, asked string }{
		{"admitted", "GET", "https://" + host + "/hello", "200 hello", "https://" + host + "/hello"},
		{"a host with a dot behind it", "GET", "http://host.invalid./denied", "403 Forbidden: no\n", "http://host.invalid/denied"},
		{"a host with a dot and a port behind it", "GET", "http://host.invalid.:80/denied", "403 Forbidden: no\n", "http://host.invalid/denied"},
		{"refused", "GET", "https://" + host + "/denied", "403 Forbidden: no\n", "https://" + host + "/denied"},
		{"refused over http", "GET", "http://HOST.invalid:80/denied", "403 Forbidden: no\n", "http://host.invalid/denied"},
		{"without the password", "GET", "http://u:p@host.invalid/denied", "403 Forbidden: no\n", "http://host.invalid/denied"},
		{"another in its place, which learns no login", "GET", "http://host.invalid/other", "200 [] [] [] []", "http://host.invalid/other"},
		{"another, for what is no GET", "HEAD", "http://host.invalid/other", "403 ", "http://host.invalid/other"},
		{"what is no URL of the web", "GET", "http://host.invalid/file", "403 Forbidden: the policies put something in the place of http://host.invalid/file that is no URL of http or https\n", "http://host.invalid/file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked = nil
			p, client := start(t, rules, server)
			req, err := http.NewRequest(c.method, c.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "secret")
			if got := result(client.Do(req)); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			p.Close()
			if len(asked) != 1 || asked[0] != c.asked {
				t.Errorf("asked about %q, want %q", asked, c.asked)
			}
		})
	}
}

// A tunnel is to one host, which is the one that the rules judge: no other behind the
// same address can be asked in it.
func TestOtherHostInTunnel(t *testing.T) {
	server := httptest.NewTLSServer(site())
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for said, want := range map[string]string{
		"127.0.0.1:" + port: "200 hello",
		"127.0.0.1":         "200 hello", // some programs leave the port out
		"127.0.0.1.":        "200 hello",
		"other.invalid":     "421 the tunnel is to another host\n",
		"[::1]:" + port:     "421 the tunnel is to another host\n",
		"127.0.0.1.invalid": "421 the tunnel is to another host\n",
	} {
		p, client := start(t, nil, server)
		req, err := http.NewRequest(http.MethodGet, server.URL+"/hello", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = said
		if got := result(client.Do(req)); got != want {
			t.Errorf("Host: %s: got %q, want %q", said, got, want)
		}
		p.Close()
		if r := p.Record(); len(r.Requests) > 0 != strings.HasPrefix(want, "200") {
			t.Errorf("Host: %s: recorded %+v", said, r)
		}
	}
}

// What a step may send to a proxy that makes no sense.
func TestNonsense(t *testing.T) {
	for _, c := range []struct{ name, send, want string }{
		{"no URL", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"another scheme", "GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"a tunnel to no port", "CONNECT x HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"a host in another script", "GET http://\uff45vil.invalid/ HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"a tunnel to a host in another script", "CONNECT \uff45vil.invalid:443 HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"a tunnel to a path", "CONNECT x/y:443 HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"a URL without end", "GET http://x/" + strings.Repeat("a", maxURL) + " HTTP/1.1\r\nHost: x\r\n\r\n", "414"},
		{"headers without end", "GET http://x/ HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", maxHeader+8<<10), "431"},
		{"no HTTP", "\x00\x01\x02\r\n\r\n", "400"},
		{"a tunnel inside a tunnel's place", "CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\n\r\nCONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n", "200"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, client := start(t, nil, nil)
			u, _ := client.Transport.(*http.Transport).Proxy(nil)
			conn, err := net.Dial("tcp", u.Host)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			go io.WriteString(conn, c.send)
			line, err := bufio.NewReader(conn).ReadString('\n')
			if f := strings.Fields(line); err != nil || len(f) < 2 || f[1] != c.want {
				t.Errorf("got %q, %v; want %s", line, err, c.want)
			}
			p.Close()
			if r := p.Record(); len(r.Files) > 0 {
				t.Errorf("recorded %v", r)
			}
		})
	}
}

// A step cannot fill the builder's memory with what it asks for.
func TestLogIsBounded(t *testing.T) {
	var l log
	for i := range maxEntries * 2 {
		u := fmt.Sprint("http://host.invalid/", i)
		l.request(Request{Method: "GET", URL: u, Status: 200})
		l.file(File{URL: u, Digest: hello})
		l.missed(Missed{Method: "GET", URL: "http://host.invalid/", Reason: reasonStatus})
	}
	r := l.all()
	if n := len(r.Requests) + len(r.Files) + len(r.Missed); n > maxEntries+1 {
		t.Errorf("%d entries", n)
	}
	if last := r.Missed[len(r.Missed)-1]; last.Reason != ReasonTooMany {
		t.Errorf("the last one missed is %v", last)
	}
}

// What is in the record already takes no more room when it comes again.
func TestLogOfTheSame(t *testing.T) {
	var l log
	m := Missed{Method: "GET", URL: "http://host.invalid/" + strings.Repeat("a", 200), Reason: reasonStatus}
	for range maxEntries {
		l.missed(m)
		l.file(File{URL: m.URL, Digest: hello})
	}
	if r := l.all(); len(r.Missed) != 1 || r.Missed[0] != m || len(r.Files) != 1 {
		t.Errorf("got %d that were missed and %d files: %.300v", len(r.Missed), len(r.Files), r)
	}
}

// Close ends a request that waits for a host, and returns.
func TestCloseEnds(t *testing.T) {
	reached := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(reached)
		<-r.Context().Done()
	}))
	defer server.Close()
	p, client := start(t, nil, nil)
	ended := make(chan string)
	go func() { ended <- result(client.Get(server.URL)) }()
	<-reached
	p.Close()
	if got := <-ended; strings.HasPrefix(got, "200") {
		t.Errorf("got %q", got)
	}
	if _, err := client.Get(server.URL); err == nil {
		t.Error("a closed proxy answers")
	}
}

func TestUpstream(t *testing.T) {
	for _, c := range []struct {
		value string
		ok    bool
	}{
		{"", true}, {"http://proxy:3128", true}, {"proxy:3128", true}, {"socks5://u:p@proxy", true},
		{"ftp://proxy", false}, {"http://", false}, {"http://pro xy", false},
	} {
		t.Setenv("HTTPS_PROXY", c.value)
		if err := checkUpstream(); (err == nil) != c.ok {
			t.Errorf("HTTPS_PROXY=%q: %v", c.value, err)
		} else if err != nil && strings.Contains(err.Error(), c.value) {
			t.Errorf("the error shows the value: %v", err)
		}
	}
}
