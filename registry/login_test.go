package registry_test

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"golang.org/x/crypto/bcrypt"

	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/registry/registrytest"
)

// login is a Credentials for one host, which fails the test when asked for another.
type login struct {
	t                  *testing.T
	host, user, secret string
}

func (l *login) Credential(_ context.Context, host string) (user, secret string, err error) {
	if host != l.host {
		l.t.Errorf("the credentials for %s were asked for, and the registry is %s", host, l.host)
		return "", "", nil
	}
	return l.user, l.secret, nil
}

var silent = ggcr.Logger(log.New(io.Discard, "", 0))

// several is a list of logins, of which the first is asked.
type several []*login

func (s several) Credential(ctx context.Context, host string) (user, secret string, err error) {
	return s[0].Credential(ctx, host)
}

func TestBasicLogin(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	passwords := filepath.Join(dir, "htpasswd")
	if err := os.WriteFile(passwords, []byte("me:"+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	reg := registrytest.Start(t, fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", passwords))
	data := noise(1000)
	d := describe(ociLayer, data)
	push := func(c *registry.Client, cred registry.Credentials) error {
		_, err := c.Push(t.Context(), cred, reg.Host+"/app", d, nil, content(data))
		return err
	}
	for name, cred := range map[string]registry.Credentials{"nobody": nil, "a wrong password": &login{t, reg.Host, "me", "wrong"}} {
		err := push(&registry.Client{Limits: patient}, cred)
		if !errors.Is(err, registry.ErrDenied) || !strings.Contains(err.Error(), "docker login "+reg.Host) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := push(&registry.Client{Limits: patient}, &login{t, reg.Host, "me", "secret"}); err != nil {
		t.Error(err)
	}
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, reg.Host, base64.StdEncoding.EncodeToString([]byte("me:secret")))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := fetch(t.Context(), &registry.Client{Limits: patient}, reg.Host+"/app", d); err != nil {
		t.Errorf("with docker's config: %v", err)
	}
	// A credential helper, as docker-credential-… programs are.
	bin := t.TempDir()
	helper := "#!/bin/sh\nread host\necho '{\"ServerURL\":\"'$host'\",\"Username\":\"me\",\"Secret\":\"secret\"}'\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	other := filepath.Join(dir, "other.json")
	if err := os.WriteFile(other, fmt.Appendf(nil, `{"credHelpers":{%q:"test"}}`, reg.Host), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := push(&registry.Client{Limits: patient}, &registry.Docker{File: other}); err != nil {
		t.Errorf("with a helper: %v", err)
	}
}

// TestTokenLogin has a registry that wants tokens: they are fetched once for a
// scope, with the password, and used for what follows.
func TestTokenLogin(t *testing.T) {
	inner := ggcr.New(silent)
	var tokens atomic.Int32
	var host string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			user, pw, _ := r.BasicAuth()
			if user != "me" || pw != "secret" || r.URL.Query().Get("service") != "test" || !strings.HasPrefix(r.URL.Query().Get("scope"), "repository:app:pull") {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			tokens.Add(1)
			fmt.Fprintf(w, `{"token":"t%d"}`, tokens.Load())
			return
		}
		if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer t") {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:app:pull,push"`, host))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer srv.Close()
	host = strings.TrimPrefix(srv.URL, "http://")
	c := &registry.Client{Limits: patient}
	cred := &login{t, host, "me", "secret"}
	data := noise(1000)
	d := describe(ociLayer, data)
	if _, err := c.Push(t.Context(), cred, host+"/app", d, nil, content(data)); err != nil {
		t.Fatal(err)
	}
	r, err := c.Fetch(t.Context(), cred, host+"/app", d)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if n := tokens.Load(); n > 2 {
		t.Errorf("%d tokens were fetched for a push and a pull", n)
	}
	// A list of logins is made anew for each request, and stays the same login.
	tokens.Store(0)
	for range 5 {
		r, err := c.Fetch(t.Context(), several{cred}, host+"/app", d)
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	if n := tokens.Load(); n != 1 {
		t.Errorf("%d tokens were fetched for five reads by one login", n)
	}
	err = fetch(t.Context(), c, host+"/app", d) // with docker's config, which has nothing
	if !errors.Is(err, registry.ErrDenied) || !strings.Contains(err.Error(), "docker login "+host) {
		t.Errorf("with nothing to log in with: %v", err)
	}
}

// TestRedirectsGetNoCredentials has a registry that sends readers elsewhere, and
// uploads too.
func TestRedirectsGetNoCredentials(t *testing.T) {
	data := noise(1000)
	d := describe(ociLayer, data)
	var uploaded atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			t.Errorf("%s %s went to another host with %q", r.Method, r.URL, a)
		}
		switch {
		case r.Method == http.MethodPut:
			n, _ := io.Copy(io.Discard, r.Body)
			uploaded.Add(n)
			w.WriteHeader(http.StatusCreated)
		case strings.HasPrefix(r.URL.Path, "/login"):
			// It may ask, and gets nothing.
			w.Header().Set("WWW-Authenticate", `Basic realm="thief"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			_, _ = w.Write(data)
		}
	}))
	defer elsewhere.Close()
	target := "/blob"
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") == "":
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		case r.Method == http.MethodHead:
			w.WriteHeader(http.StatusNotFound)
		case r.Method == http.MethodPost:
			w.Header().Set("Location", elsewhere.URL+"/upload?signature=x")
			w.WriteHeader(http.StatusAccepted)
		default:
			http.Redirect(w, r, elsewhere.URL+target, http.StatusTemporaryRedirect)
		}
	}))
	defer reg.Close()
	host := strings.TrimPrefix(reg.URL, "http://")
	c := &registry.Client{Limits: patient}
	cred := &login{t, host, "me", "secret"}
	if r, err := c.Fetch(t.Context(), cred, host+"/app", d); err != nil {
		t.Errorf("fetching: %v", err)
	} else {
		got, err := io.ReadAll(r)
		if err != nil || len(got) != len(data) {
			t.Errorf("fetching: %d bytes, %v", len(got), err)
		}
		r.Close()
	}
	if _, err := c.Push(t.Context(), cred, host+"/app", d, nil, content(data)); err != nil || uploaded.Load() != d.Size {
		t.Errorf("pushing: %d bytes, %v", uploaded.Load(), err)
	}
	target = "/login"
	if _, err := c.Fetch(t.Context(), cred, host+"/app", d); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("a redirect to what asks for a login: %v", err)
	}
}

func TestBadLocations(t *testing.T) {
	data := noise(1000)
	d := describe(ociLayer, data)
	var location string
	reg := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			w.Header()["Location"] = []string{location}
			w.WriteHeader(http.StatusAccepted)
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	defer reg.Close()
	host := strings.TrimPrefix(reg.URL, "https://")
	c := trusting(t, reg, host)
	for _, location = range []string{"", "http://" + host + "/plain", "file:///etc/passwd", "https://user:pw@" + host + "/x", "http://[", "mailto:x"} {
		_, err := c.Push(t.Context(), registry.Anonymous{}, host+"/app", d, nil, content(data))
		if err == nil || !strings.Contains(err.Error(), host) {
			t.Errorf("%q: got %v", location, err)
		}
	}
}

// trusting makes a client that knows the certificate of srv from a file.
func trusting(t *testing.T, srv *httptest.Server, host string) *registry.Client {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "ca.crt")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}
	if err := os.WriteFile(ca, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	no := false
	return &registry.Client{Limits: patient, Hosts: map[string]registry.HostConfig{host: {HTTP: &no, CAs: []string{ca}}}}
}

func TestTLS(t *testing.T) {
	srv := httptest.NewTLSServer(ggcr.New(silent))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "https://")
	data := noise(1000)
	d := describe(ociLayer, data)
	yes, no := true, false
	plain := httptest.NewServer(ggcr.New(silent))
	defer plain.Close()
	plainHost := strings.TrimPrefix(plain.URL, "http://")
	for _, test := range []struct {
		name   string
		host   string
		config registry.HostConfig
		says   string // "" is success
	}{
		{"an unknown certificate", host, registry.HostConfig{HTTP: &no}, "ca = "},
		{"a certificate that is not to be verified", host, registry.HostConfig{HTTP: &no, Insecure: &yes}, ""},
		{"TLS to a server without it", plainHost, registry.HostConfig{HTTP: &no}, "http = true"},
		{"plain HTTP to a server with TLS", host, registry.HostConfig{HTTP: &yes}, "http = false"},
		{"either, from a server without TLS", plainHost, registry.HostConfig{HTTP: &yes, Insecure: &yes}, ""},
		{"either, from a server with TLS", host, registry.HostConfig{HTTP: &yes, Insecure: &yes}, ""},
		{"a CA that is no certificate", host, registry.HostConfig{HTTP: &no, CAs: []string{"/etc/hostname"}}, "no PEM certificate"},
		{"a CA that is not there", host, registry.HostConfig{HTTP: &no, CAs: []string{"/nowhere.crt"}}, "/nowhere.crt"},
	} {
		c := &registry.Client{Limits: patient, Hosts: map[string]registry.HostConfig{test.host: test.config}}
		_, err := c.Push(t.Context(), registry.Anonymous{}, test.host+"/app", d, nil, content(data))
		if test.says == "" && err != nil || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
			t.Errorf("%s: got %v, want it to say %q", test.name, err, test.says)
		}
	}
	c := trusting(t, srv, host)
	if _, err := c.Push(t.Context(), registry.Anonymous{}, host+"/app", d, nil, content(data)); err != nil {
		t.Errorf("a known certificate: %v", err)
	}
	// The same by a folder, as docker's certs.d has it.
	dir := filepath.Dir(c.Hosts[host].CAs[0])
	c = &registry.Client{Limits: patient, Hosts: map[string]registry.HostConfig{host: {HTTP: &no, ConfigDir: []string{dir, "/nowhere"}}}}
	if _, err := c.Push(t.Context(), registry.Anonymous{}, host+"/app", d, nil, content(data)); err != nil {
		t.Errorf("a folder with a known certificate: %v", err)
	}
}

func TestLargeManifest(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", ociManifest)
		if r.Method == http.MethodGet {
			_, _ = io.Copy(w, io.LimitReader(spaces{}, registry.MaxManifest+10))
		}
	}))
	defer srv.Close()
	_, _, err := (&registry.Client{Limits: patient}).Manifest(t.Context(), registry.Anonymous{}, strings.TrimPrefix(srv.URL, "http://")+"/app")
	if !errors.Is(err, registry.ErrCorrupt) || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("got %v", err)
	}
}

// spaces gives spaces for ever.
type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}
