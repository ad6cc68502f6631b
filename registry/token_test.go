package registry_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/kiln-build/kiln/registry"
)

// office is a registry and, on another port, who hands out tokens for it.
type office struct {
	host, realm string

	mu     sync.Mutex
	good   map[string]bool // the tokens that the registry takes
	asked  []*http.Request // the requests for tokens, their forms read
	answer func(r *http.Request, token string) (status int, body string)
	reads  int // requests that were let in
}

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{good: map[string]bool{}}
	realm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		_ = r.ParseForm()
		o.asked = append(o.asked, r)
		token := fmt.Sprintf("t%d", len(o.asked))
		o.good[token] = true
		status, body := o.answer(r, token)
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
	t.Cleanup(realm.Close)
	o.realm = realm.URL + "/token"
	inner := ggcr.New(silent)
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		ok := o.good[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
		if ok {
			o.reads++
		}
		o.mu.Unlock()
		if !ok {
			w.Header().Add("WWW-Authenticate", `Basic realm="x"`)
			w.Header().Add("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="here",scope="repository:app:pull"`, o.realm))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(reg.Close)
	o.host = strings.TrimPrefix(reg.URL, "http://")
	return o
}

// read asks the registry for what it does not have: it is about being let in.
func (o *office) read(c *registry.Client, cred registry.Credentials) error {
	_, _, err := c.Manifest(context.Background(), cred, o.host+"/app:latest")
	if errors.Is(err, registry.ErrNotFound) {
		return nil
	}
	return err
}

func (o *office) expect(t *testing.T, what string, tokens int) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.asked) != tokens {
		t.Errorf("%s: %d tokens were asked for, want %d", what, len(o.asked), tokens)
	}
}

// TestTokensAreHeldAsLongAsTheyLive moves a clock past the end of a token.
func TestTokensAreHeldAsLongAsTheyLive(t *testing.T) {
	for _, test := range []struct {
		name, more string
		life       time.Duration
	}{
		{"as it says", `,"expires_in":300`, 300 * time.Second},
		{"where it does not say", ``, time.Minute},
		{"from when it was issued", `,"expires_in":300,"issued_at":"2030-01-01T00:00:00Z"`, 240 * time.Second},
		{"not longer for what is issued in the future", `,"expires_in":300,"issued_at":"2040-01-01T00:00:00Z"`, 300 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := newOffice(t)
			o.answer = func(_ *http.Request, token string) (int, string) {
				return http.StatusOK, fmt.Sprintf(`{"token":%q%s}`, token, test.more)
			}
			now := time.Date(2030, 1, 1, 0, 1, 0, 0, time.UTC)
			c := &registry.Client{Limits: patient, Clock: func() time.Time { return now }}
			cred := &login{t, o.host, "me", "secret"}
			for _, step := range []struct {
				after  time.Duration
				tokens int
			}{{0, 1}, {test.life / 2, 1}, {test.life/2 - time.Second, 2}} {
				now = now.Add(step.after)
				if err := o.read(c, cred); err != nil {
					t.Fatal(err)
				}
				o.expect(t, step.after.String()+" later", step.tokens)
			}
		})
	}
}

// TestTokenForms has realms that want a login in one way or the other.
func TestTokenForms(t *testing.T) {
	ok := func(_ *http.Request, token string) (int, string) {
		return 200, fmt.Sprintf(`{"access_token":%q}`, token)
	}
	onlyForms := func(r *http.Request, token string) (int, string) {
		if r.Method != http.MethodPost {
			return http.StatusNotFound, ""
		}
		return ok(r, token)
	}
	for _, test := range []struct {
		name, user, secret string
		answer             func(*http.Request, string) (int, string)
		method, grant      string // of the last request
		says               string // "" is success
	}{
		{"nobody", "", "", ok, "GET", "", ""},
		{"a password", "me", "secret", ok, "GET", "", ""},
		{"a password, for a realm of forms", "me", "secret", onlyForms, "POST", "password", ""},
		{"an identity token", "", "secret", ok, "POST", "refresh_token", ""},
		{"a refusal", "", "", func(*http.Request, string) (int, string) { return 403, `{"errors":[{"message":"not you"}]}` }, "GET", "", "not you"},
		{"no token", "", "", func(*http.Request, string) (int, string) { return 200, `{}` }, "GET", "", "empty token"},
		{"no answer", "", "", func(*http.Request, string) (int, string) { return 200, `<html>` }, "GET", "", "reading the token"},
		{"what is no header", "", "", func(*http.Request, string) (int, string) { return 200, `{"token":"a\nb"}` }, "GET", "", "does not fit"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := newOffice(t)
			o.answer = test.answer
			limits := patient
			limits.Attempts = 1
			err := o.read(&registry.Client{Limits: limits}, &login{t, o.host, test.user, test.secret})
			if test.says == "" && err != nil || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("got %v, want it to say %q", err, test.says)
			}
			last := o.asked[len(o.asked)-1]
			if last.Method != test.method || last.Form.Get("grant_type") != test.grant || last.Form.Get("service") != "here" || last.Form.Get("scope") != "repository:app:pull" {
				t.Errorf("the realm was asked by %s with %v", last.Method, last.Form)
			}
			if user, pw, _ := last.BasicAuth(); last.Method == "GET" && (user != test.user || pw != test.secret) {
				t.Errorf("the realm was shown %q %q", user, pw)
			}
		})
	}
}

// fetcher is a Credentials that hands out tokens and no login.
type fetcher struct {
	t      *testing.T
	tokens []registry.Token // one after the other; the last one again
	fails  error
	asked  []registry.TokenRequest
}

func (f *fetcher) Credential(context.Context, string) (user, secret string, err error) {
	f.t.Error("the login was asked for")
	return "", "", nil
}

func (f *fetcher) Token(_ context.Context, r registry.TokenRequest) (registry.Token, bool, error) {
	f.asked = append(f.asked, r)
	return f.tokens[min(len(f.asked), len(f.tokens))-1], true, f.fails
}

func TestTokenFetcher(t *testing.T) {
	o := newOffice(t)
	o.good["theirs"] = true
	c := &registry.Client{Limits: patient}
	f := &fetcher{t: t, tokens: []registry.Token{{Value: "theirs"}}}
	for range 3 {
		if err := o.read(c, f); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.asked) != 1 || f.asked[0].Host != o.host || f.asked[0].Realm != o.realm || f.asked[0].Service != "here" || !slices.Equal(f.asked[0].Scopes, []string{"repository:app:pull"}) {
		t.Errorf("asked for %+v", f.asked)
	}
	o.expect(t, "by the registry's client", 0)

	// One that is not good any more is asked for again, once.
	f = &fetcher{t: t, tokens: []registry.Token{{Value: "stale"}, {Value: "theirs"}}}
	if err := o.read(c, f); err != nil || len(f.asked) != 2 {
		t.Errorf("after a stale token: %v, asked %d times", err, len(f.asked))
	}
	f = &fetcher{t: t, tokens: []registry.Token{{Value: "stale"}}}
	if err := o.read(c, f); !errors.Is(err, registry.ErrDenied) || len(f.asked) != 2 {
		t.Errorf("with stale tokens only: %v, asked %d times", err, len(f.asked))
	}
	f = &fetcher{t: t, tokens: []registry.Token{{}}, fails: errors.New("the client went away")}
	if err := o.read(c, f); !errors.Is(err, registry.ErrDenied) || !strings.Contains(err.Error(), "went away") || len(f.asked) != 1 {
		t.Errorf("with no token: %v, asked %d times", err, len(f.asked))
	}
}
