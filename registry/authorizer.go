package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
)

const (
	schemeBasic  = "basic"
	schemeBearer = "bearer"
)

// maxRedirects is how often a request follows redirects, as by net/http.
const maxRedirects = 10

// errNoLogin is that a server wants a password and nobody has one for it.
var errNoLogin = errors.New("no login is known for it")

// authorizer sends requests to one endpoint and answers its challenges: with the
// credentials for that very endpoint, which go to no other host. Neither one that
// it redirects to nor one that an upload's Location names is shown anything.
type authorizer struct {
	client *http.Client
	agent  string
	host   string
	cred   Credentials
	passes *passes
	clock  func() time.Time
	origin *url.URL // of the request that was refused; set on the copy that answers
}

// authorizer makes the one of an endpoint.
func (c *Client) authorizer(e endpoint, cred Credentials) (*authorizer, error) {
	if cred == nil {
		cred = &c.docker
	}
	hc, err := c.httpClient(e)
	if err != nil {
		return nil, err
	}
	hc.CheckRedirect = follow
	agent := c.UserAgent
	if agent == "" {
		agent = "kiln"
	}
	return &authorizer{client: hc, agent: agent, host: e.host, cred: cred, passes: c.passes(cred), clock: c.clock()}, nil
}

// do sends a request, and again with what the server wants to see. An answer of
// 401 is what it says to that, or of a server that is not the endpoint.
func (a *authorizer) do(req *http.Request, scopes []string) (*http.Response, error) {
	if hostPort(req.URL) != hostPort(&url.URL{Scheme: req.URL.Scheme, Host: a.host}) {
		return a.send(a.client, req)
	}
	scopes = auth.CleanScopes(scopes)
	key := strings.Join(scopes, " ")
	// Who fetches tokens may have had one that is not good any more.
	answers := 1
	if _, ok := a.cred.(TokenFetcher); ok {
		answers = 2
	}
	header := a.passes.get(a.host, key)
	for again := false; ; again = true {
		resp, err := a.sendWith(req, header, again)
		// The scheme may be another, where a server turned out not to speak TLS.
		if err != nil || resp.StatusCode != http.StatusUnauthorized || answers == 0 || !strings.EqualFold(resp.Request.URL.Host, req.URL.Host) {
			return resp, err
		}
		answers--
		c, ok := pick(resp.Header.Values("WWW-Authenticate"))
		if !ok {
			return resp, nil
		}
		resp.Body.Close()
		a.passes.drop(a.host, header)
		if header, err = a.answer(req.Context(), resp.Request.URL, c, key, scopes); err != nil {
			return nil, err
		}
	}
}

// sendWith sends a copy of a request with that header; again with the body from its
// beginning.
func (a *authorizer) sendWith(req *http.Request, header string, again bool) (*http.Response, error) {
	r := req.Clone(req.Context())
	if header != "" {
		r.Header.Set("Authorization", header)
	}
	if again && req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, err
		}
		r.Body = body
	}
	return a.send(a.client, r)
}

// answer gives the header that a challenge wants.
func (a *authorizer) answer(ctx context.Context, origin *url.URL, c challenge, key string, scopes []string) (string, error) {
	if c.scheme == schemeBasic {
		return a.passes.obtain(ctx, passKey{host: a.host}, nil, func() (pass, error) {
			user, secret, err := a.credential(ctx)
			if err == nil && (user == "" || secret == "") {
				err = errNoLogin
			}
			return pass{header: "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+secret))}, err
		})
	}
	// What the server says that the request needs is asked for besides what is
	// known that it needs, and the token serves for requests like this one.
	scopes = auth.CleanScopes(append(scopes[:len(scopes):len(scopes)], strings.Fields(c.params["scope"])...))
	r := TokenRequest{Host: a.host, Realm: c.params["realm"], Service: c.params["service"], Scopes: scopes}
	realm, err := url.Parse(r.Realm)
	if err != nil {
		return "", fmt.Errorf("the registry %s asks for a token from an address that cannot be read: %w", a.host, err)
	}
	if err := checkRealm(ctx, origin, realm); err != nil {
		return "", &realmError{err}
	}
	asking := *a
	asking.origin = origin
	return a.passes.obtain(ctx, passKey{a.host, strings.Join(scopes, " ")}, []passKey{{a.host, key}}, func() (pass, error) {
		t, err := asking.obtainToken(ctx, r)
		return pass{"Bearer " + t.Value, t.Expires}, err
	})
}

// obtainToken has the credentials fetch a token where they do so, and fetches it itself else.
func (a *authorizer) obtainToken(ctx context.Context, r TokenRequest) (Token, error) {
	if f, ok := a.cred.(TokenFetcher); ok {
		t, ok, err := f.Token(ctx, r)
		if err != nil {
			return Token{}, &credentialError{a.host, err}
		}
		if ok {
			return t, checkToken(t.Value, r.Realm)
		}
	}
	return a.fetchToken(ctx, r)
}

// credential asks for the login of the endpoint.
func (a *authorizer) credential(ctx context.Context) (user, secret string, err error) {
	if user, secret, err = a.cred.Credential(ctx, a.host); err != nil {
		return "", "", &credentialError{a.host, err}
	}
	return user, secret, nil
}

func (a *authorizer) send(client *http.Client, req *http.Request) (*http.Response, error) {
	req.Header.Set("User-Agent", a.agent)
	return client.Do(req)
}

// follow follows a redirect, without the header that is for the first server
// alone. net/http leaves it to names that end in the first one's, and to other ports.
func follow(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("stopped after %d redirects", maxRedirects)
	}
	if away(via, req) {
		req.Header.Del("Authorization")
	}
	return nil
}

// away reports whether a chain of redirects has ever left the server that it began at:
// on each step net/http makes the headers from the first request's.
func away(via []*http.Request, req *http.Request) bool {
	first := via[0].URL
	for _, r := range append(via[1:len(via):len(via)], req) {
		if r.URL.Scheme != first.Scheme || hostPort(r.URL) != hostPort(first) {
			return true
		}
	}
	return false
}

// hostPort gives a URL's host with its port, also where that is the scheme's own.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" && u.Scheme == "https" {
		port = "443"
	} else if port == "" {
		port = "80"
	}
	return strings.ToLower(u.Hostname()) + ":" + port
}

// realmError is a realm that must not be asked, which no retry mends.
type realmError struct{ err error }

func (e *realmError) Error() string { return e.err.Error() }
func (e *realmError) Unwrap() error { return e.err }
