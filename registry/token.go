package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// TokenRequest is what a registry wants a token for.
type TokenRequest struct {
	Host    string   // of the registry, as for Credentials
	Realm   string   // the address of who hands out tokens
	Service string   // what the registry calls itself there
	Scopes  []string // "repository:library/debian:pull" for one
}

// Token is what lets a request in.
type Token struct {
	Value string
	// Expires is when it ends; zero where nobody knows, and it is good until it is
	// refused.
	Expires time.Time
}

// TokenFetcher is a Credentials that fetches tokens itself: its password does not
// leave it, or it reaches who hands out tokens where this machine does not.
type TokenFetcher interface {
	// Token fetches a token. Where it fetches none for the host ok is false, and its
	// Credential is asked for.
	Token(ctx context.Context, r TokenRequest) (t Token, ok bool, err error)
}

// defaultLife is how long a token lives that does not say, by the distribution
// specification.
const defaultLife = time.Minute

// Expiry gives when a token that was received at now must no longer be used; zero
// seconds are the default. A tenth of its life is left for requests under way.
func Expiry(now, issued time.Time, seconds int64) time.Time {
	life := defaultLife
	if seconds > 0 {
		life = time.Duration(min(seconds, 1<<31)) * time.Second
	}
	// The clock of who issued it may go wrong; that it was issued in the future it was not.
	if !issued.IsZero() && issued.Before(now) {
		now = issued
	}
	return now.Add(life - life/10)
}

// maxToken bounds the answer with a token, which has to fit into a header.
const maxToken = 256 << 10

// fetchToken asks the realm for a token, with the login where there is one.
func (a *authorizer) fetchToken(ctx context.Context, r TokenRequest) (Token, error) {
	user, secret, err := a.credential(ctx)
	if err != nil {
		return Token{}, err
	}
	if secret == "" || user != "" {
		t, err := a.byQuery(ctx, r, user, secret)
		if secret == "" || err == nil || !wantsForm(err) {
			return t, err
		}
		// Some know the form only.
		if t, err := a.byForm(ctx, r, url.Values{"grant_type": {"password"}, "username": {user}, "password": {secret}}); err == nil {
			return t, nil
		}
		return Token{}, err
	}
	return a.byForm(ctx, r, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {secret}})
}

// wantsForm reports whether a refusal can mean that the realm takes forms only.
func wantsForm(err error) bool {
	var refused *tokenError
	if !errors.As(err, &refused) {
		return false
	}
	switch refused.status {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnauthorized:
		return true
	}
	return false
}

// byQuery is the distribution specification's way.
func (a *authorizer) byQuery(ctx context.Context, r TokenRequest, user, secret string) (Token, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.Realm, nil)
	if err != nil {
		return Token{}, err
	}
	if secret != "" {
		req.SetBasicAuth(user, secret)
	}
	q := req.URL.Query()
	if r.Service != "" {
		q.Set("service", r.Service)
	}
	for _, s := range r.Scopes {
		q.Add("scope", s)
	}
	req.URL.RawQuery = q.Encode()
	return a.token(req)
}

// byForm is OAuth2's way.
func (a *authorizer) byForm(ctx context.Context, r TokenRequest, form url.Values) (Token, error) {
	form.Set("service", r.Service)
	form.Set("client_id", "kiln")
	if len(r.Scopes) > 0 {
		form.Set("scope", strings.Join(r.Scopes, " "))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Realm, strings.NewReader(form.Encode()))
	if err != nil {
		return Token{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return a.token(req)
}

// token sends a request for a token and reads the answer.
func (a *authorizer) token(req *http.Request) (Token, error) {
	asked := a.clock()
	client := *a.client
	client.CheckRedirect = a.followRealm
	resp, err := a.send(&client, req)
	if err != nil {
		return Token{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return Token{}, &tokenError{status: resp.StatusCode, said: readErrors(resp)}
	}
	defer resp.Body.Close()
	var answer struct {
		Token       string    `json:"token"`
		AccessToken string    `json:"access_token"`
		ExpiresIn   int64     `json:"expires_in"`
		IssuedAt    time.Time `json:"issued_at"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxToken)).Decode(&answer); err != nil {
		return Token{}, fmt.Errorf("reading the token that %s answers with: %w", req.URL.Host, err)
	}
	t := Token{Value: answer.AccessToken, Expires: Expiry(asked, answer.IssuedAt, answer.ExpiresIn)}
	if t.Value == "" {
		t.Value = answer.Token
	}
	return t, checkToken(t.Value, req.URL.Host)
}

// checkToken refuses what is no token.
func checkToken(value, from string) error {
	if value == "" {
		return fmt.Errorf("%s answers with an empty token", from)
	}
	if len(value) > maxToken || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("%s answers with a token that does not fit into a header", from)
	}
	return nil
}

// tokenError is the answer of a realm that gives no token.
type tokenError struct {
	status int
	said   string
}

func (e *tokenError) Error() string {
	return fmt.Sprintf("no token: %d %s: %s", e.status, http.StatusText(e.status), e.said)
}

// followRealm follows redirects of requests for tokens: to nowhere that the realm
// itself may not be, and never with a form, in which the secret is.
func (a *authorizer) followRealm(req *http.Request, via []*http.Request) error {
	if err := checkRealm(req.Context(), a.origin, req.URL); err != nil {
		return err
	}
	if away(via, req) && req.Body != nil && req.Body != http.NoBody {
		return fmt.Errorf("%s sends requests for tokens to another server", via[0].URL.Host)
	}
	return follow(req, via)
}

// checkRealm refuses to ask for tokens where a registry has no business to send
// this machine: in the clear where it was not spoken to so itself, to addresses
// inside of this machine's networks unless it is inside too, and to those at
// which clouds tell their machines secrets.
func checkRealm(ctx context.Context, registry, realm *url.URL) error {
	switch {
	case realm.Scheme == "http" && registry.Scheme == "https":
		return fmt.Errorf("the registry %s asks for a token by plain HTTP, from %s", registry.Host, realm.Host)
	case realm.Scheme != "http" && realm.Scheme != "https", realm.Host == "":
		return fmt.Errorf("the registry %s asks for a token from %q, which is no address", registry.Host, realm.Redacted())
	case strings.EqualFold(realm.Hostname(), registry.Hostname()):
		return nil
	}
	to := reachOf(ctx, realm.Hostname())
	if to == reachMachine || to > reachOf(ctx, registry.Hostname()) {
		return fmt.Errorf("the registry %s asks for a token from %s, which is an internal address", registry.Host, realm.Host)
	}
	return nil
}

// reach is who else can reach a server, from everybody to this machine alone.
type reach int

const (
	reachAll      reach = iota // or nobody knows
	reachNetwork               // an address of a private network
	reachLoopback              // on this machine
	reachMachine               // link-local, where clouds answer their machines
)

// reachOf looks up a host. One that has no address here, as behind a proxy, counts
// as public.
func reachOf(ctx context.Context, host string) reach {
	if a, err := netip.ParseAddr(host); err == nil {
		return reachOfAddr(a)
	}
	addrs, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	most := reachAll
	for _, a := range addrs {
		most = max(most, reachOfAddr(a))
	}
	return most
}

func reachOfAddr(a netip.Addr) reach {
	a = a.Unmap()
	switch {
	case a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() || a.IsUnspecified() || metadataAddrs[a]:
		return reachMachine
	case a.IsLoopback():
		return reachLoopback
	case a.IsPrivate() || sharedSpace.Contains(a):
		return reachNetwork
	}
	return reachAll
}

// sharedSpace is that of carriers (RFC 6598), and metadataAddrs are where clouds
// tell machines about themselves besides the link-local address.
var (
	sharedSpace   = netip.MustParsePrefix("100.64.0.0/10")
	metadataAddrs = map[netip.Addr]bool{
		netip.MustParseAddr("100.100.100.200"): true,
		netip.MustParseAddr("fd00:ec2::254"):   true,
	}
)
