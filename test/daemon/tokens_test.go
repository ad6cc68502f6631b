package daemon

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiln-build/kiln/registry/registrytest"
)

// tokenServer hands out the tokens of a registry, over TLS with a certificate of an
// authority that clients know and the daemon does not. Who logs in as "me" may do
// everything.
type tokenServer struct {
	*httptest.Server
	authority *authority // signs the tokens too

	mu    sync.Mutex
	asked []string // "CLIENT USER SCOPES" of each request
}

func newTokenServer(t *testing.T) *tokenServer {
	t.Helper()
	s := &tokenServer{authority: newAuthority(t)}
	s.authority.server("tokens")
	pair, err := tls.LoadX509KeyPair(s.authority.path("tokens.pem"), s.authority.path("tokens.key"))
	if err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewUnstartedServer(s)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.Config.ErrorLog = silentLog
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// ca is the file with the authority's certificate.
func (s *tokenServer) ca() string { return s.authority.path("ca.pem") }

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	user, password, _ := r.BasicAuth()
	if r.Method == http.MethodPost {
		user, password = r.Form.Get("username"), r.Form.Get("password")
	}
	scopes := r.Form["scope"]
	if len(scopes) == 1 {
		scopes = strings.Fields(scopes[0])
	}
	s.mu.Lock()
	s.asked = append(s.asked, strings.Join(append([]string{r.Form.Get("client_id"), user}, scopes...), " "))
	s.mu.Unlock()
	var access []map[string]any
	for _, scope := range scopes {
		if kind, rest, ok := strings.Cut(scope, ":"); ok && user == "me" && password == "secret" {
			i := strings.LastIndex(rest, ":")
			access = append(access, map[string]any{"type": kind, "name": rest[:i], "actions": strings.Split(rest[i+1:], ",")})
		}
	}
	token, err := s.sign(access)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 300})
}

// sign makes a token in the form that docker's registry takes.
func (s *tokenServer) sign(access []map[string]any) (string, error) {
	now := time.Now()
	var text []string
	for _, part := range []any{
		map[string]any{"typ": "JWT", "alg": "ES256", "x5c": [][]byte{s.authority.cert.Raw}},
		map[string]any{
			"iss": "tokens", "sub": "somebody", "aud": "registry", "jti": rand.Text(), "access": access,
			"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(5 * time.Minute).Unix(),
		},
	} {
		data, err := json.Marshal(part)
		if err != nil {
			return "", err
		}
		text = append(text, base64.RawURLEncoding.EncodeToString(data))
	}
	sum := sha256.Sum256([]byte(strings.Join(text, ".")))
	r, v, err := ecdsa.Sign(rand.Reader, s.authority.key, sum[:])
	if err != nil {
		return "", err
	}
	signature := append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...)
	return strings.Join(append(text, base64.RawURLEncoding.EncodeToString(signature)), "."), nil
}

// take gives the requests since it was last called.
func (s *tokenServer) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.asked
	s.asked = nil
	slices.Sort(out)
	return out
}

// TestTokens has clients that reach who hands out tokens, and a daemon that does
// not: the clients fetch the tokens.
func TestTokens(t *testing.T) {
	tokens := newTokenServer(t)
	reg := registrytest.Start(t, fmt.Sprintf(
		"auth: {token: {realm: %q, service: registry, issuer: tokens, rootcertbundle: %s}}\n", tokens.URL+"/token", tokens.ca()))
	_, d := newClient(t)
	ctx := folder(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n", "again/Dockerfile": "FROM " + reg.Host + "/made\nCOPY Dockerfile /x\n"})
	login := folder(t, map[string]string{"config.json": fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, reg.Host, base64.StdEncoding.EncodeToString([]byte("me:secret")))})
	nobody := folder(t, map[string]string{"config.json": "{}"})
	trusting := "host=" + reg.Host + ",ca=" + tokens.ca()

	run := func(program, config string, env []string, args ...string) (string, error) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), filepath.Join(shared.peers, program), args...)
		cmd.Env = append(os.Environ(), append(env, "BUILDKIT_HOST="+d.addr(), "DOCKER_CONFIG="+config, "BUILDX_CONFIG="+filepath.Join(d.dir, "buildx"))...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	build := func(config string, env []string, dir string, more ...string) (string, error) {
		t.Helper()
		args := []string{"build", "--progress", "plain", "--frontend", "dockerfile.v0", "--local", "context=" + dir, "--local", "dockerfile=" + dir}
		return run("buildctl", config, env, append(args, more...)...)
	}
	push := "type=image,push=true,name=" + reg.Host + "/made"
	must := func(out string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	expect := func(what string, want ...string) {
		t.Helper()
		if got := tokens.take(); !slices.Equal(got, want) {
			t.Errorf("%s: the tokens that were asked for are %q, want %q", what, got, want)
		}
	}

	must(build(login, nil, ctx, "--output", push, "--registry-auth-tlscontext", trusting))
	expect("a push", "buildkit-client me repository:made:pull,push")
	must(build(login, nil, ctx, "--output", push, "--registry-auth-tlscontext", trusting))
	expect("the same by another session of the same login")
	must(build(login, nil, filepath.Join(ctx, "again"), "--registry-auth-tlscontext", trusting))
	expect("a pull", "buildkit-client me repository:made:pull")

	out, err := build(nobody, nil, filepath.Join(ctx, "again"), "--no-cache", "--opt", "image-resolve-mode=pull", "--registry-auth-tlscontext", trusting)
	if err == nil || !strings.Contains(out, "log in with") {
		t.Errorf("somebody else's build ended with %v\n%s", err, out)
	}
	for _, request := range tokens.take() {
		if strings.Contains(request, "me") && !strings.HasPrefix(request, "buildkit-client  ") {
			t.Errorf("nobody asked for %q", request)
		}
	}

	// A client that does not fetch tokens: the daemon does, as far as it can.
	out, err = build(login, []string{"BUILDKIT_NO_CLIENT_TOKEN=1"}, ctx, "--output", push, "--registry-auth-tlscontext", trusting)
	if err == nil || !strings.Contains(out, "certificate") {
		t.Errorf("a daemon that does not know the certificate ended with %v\n%s", err, out)
	}
	expect("a client that fetches none")

	system := []string{"SSL_CERT_FILE=" + tokens.ca()}
	must(run("buildx", login, system, "create", "--driver", "remote", "--name", "kiln", d.addr()))
	must(run("buildx", login, system, "build", "--builder", "kiln", "--progress", "plain", "--push", "--tag", reg.Host+"/other", ctx))
	if asked := tokens.take(); len(asked) == 0 || !slices.ContainsFunc(asked, func(r string) bool { return r == "buildkit-client me repository:other:pull,push" }) {
		t.Errorf("buildx asked for the tokens %q", asked)
	}
	said, err := os.ReadFile(filepath.Join(d.dir, "log"))
	if err != nil || bytes.Contains(said, []byte("secret")) {
		t.Errorf("the daemon's log holds a password: %v", err)
	}
}

// silentLog drops what servers say of clients that go away.
var silentLog = log.New(io.Discard, "", 0)
