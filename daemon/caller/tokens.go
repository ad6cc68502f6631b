package caller

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/session/auth"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/registry"
)

// clientID is what clients are told of who asks for a token.
const clientID = "kiln"

const (
	// maxTokens bounds what tokens are held, in bytes: clients choose how long they
	// are, and registries what they are for.
	maxTokens = 4 << 20
	// tokenEntry is about what one takes besides its text.
	tokenEntry = 256
)

// Tokens are the tokens that clients have fetched from registries, so that the next
// build of somebody who has the same login need not fetch them again. They are safe
// for concurrent use.
//
// A client names a login by a public key, which it makes of the login and of the
// daemon's salt; it is given the token that another session of that login has fetched
// only after it has signed something of the daemon's choice with the private one.
type Tokens struct {
	salt  []byte
	clock func() time.Time

	mu   sync.Mutex // guards what is below
	held map[tokenKey]registry.Token
	size int // of held
}

type tokenKey struct{ authority, host, realm, service, scopes string }

// size gives what a token takes that is held under k.
func (k tokenKey) size(token registry.Token) int {
	return tokenEntry + len(k.authority) + len(k.host) + len(k.realm) + len(k.service) + len(k.scopes) + len(token.Value)
}

// NewTokens gives an empty set; clock tells the time.
func NewTokens(clock func() time.Time) *Tokens {
	t := &Tokens{salt: make([]byte, 32), clock: clock, held: map[tokenKey]registry.Token{}}
	rand.Read(t.salt) // never fails
	return t
}

func (t *Tokens) get(k tokenKey) (registry.Token, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	found, ok := t.held[k]
	if ok && !t.clock().Before(found.Expires) {
		t.drop(k)
		return registry.Token{}, false
	}
	return found, ok
}

func (t *Tokens) put(k tokenKey, token registry.Token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(k)
	n := k.size(token)
	if n > maxTokens {
		return
	}
	if t.size+n > maxTokens {
		clear(t.held)
		t.size = 0
	}
	t.held[k] = token
	t.size += n
}

// drop forgets a token. t.mu is held.
func (t *Tokens) drop(k tokenKey) {
	if token, ok := t.held[k]; ok {
		delete(t.held, k)
		t.size -= k.size(token)
	}
}

var _ registry.TokenFetcher = (*Caller)(nil)

// Token has the client fetch a token, where it does that.
func (c *Caller) Token(ctx context.Context, r registry.TokenRequest) (token registry.Token, ok bool, err error) {
	conn, err := c.get(ctx)
	if err != nil {
		return registry.Token{}, false, err
	}
	ctx, cancel := context.WithTimeout(conn.Context(ctx), authTimeout)
	defer cancel()
	client := auth.NewAuthClient(conn.Conn())
	authority, err := client.GetTokenAuthority(ctx, &auth.GetTokenAuthorityRequest{Host: r.Host, Salt: c.tokens.salt})
	if missing(err) || codeOf(err) == codes.Unavailable {
		return registry.Token{}, false, nil // it gives its login instead
	}
	if err != nil {
		return registry.Token{}, false, fmt.Errorf("asking the client whether it fetches tokens for %s: %w", r.Host, err)
	}
	if n := len(authority.PublicKey); n != ed25519.PublicKeySize {
		return registry.Token{}, false, fmt.Errorf("the client names its login at %s by a key of %d bytes", r.Host, n)
	}
	k := tokenKey{string(authority.PublicKey), r.Host, r.Realm, r.Service, strings.Join(r.Scopes, " ")}
	if token, ok := c.tokens.get(k); ok && c.first(k) && c.owns(ctx, client, r.Host, authority.PublicKey) {
		return token, true, nil
	}
	asked := c.tokens.clock()
	resp, err := client.FetchToken(ctx, &auth.FetchTokenRequest{ClientID: clientID, Host: r.Host, Realm: r.Realm, Service: r.Service, Scopes: r.Scopes})
	if err != nil {
		return registry.Token{}, false, fmt.Errorf("having the client fetch a token for %s: %w", r.Host, err)
	}
	var issued time.Time
	if resp.IssuedAt > 0 {
		issued = time.Unix(resp.IssuedAt, 0)
	}
	token = registry.Token{Value: resp.Token, Expires: registry.Expiry(asked, issued, resp.ExpiresIn)}
	c.tokens.put(k, token)
	return token, true, nil
}

// first reports whether this build was not given that token before: one that it asks
// for again was refused.
func (c *Caller) first(k tokenKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	again := c.used[k]
	c.used[k] = true
	return !again
}

// owns has the client prove that the login of that name is its own.
func (c *Caller) owns(ctx context.Context, client auth.AuthClient, host string, key ed25519.PublicKey) bool {
	payload := make([]byte, 32)
	rand.Read(payload) // never fails
	resp, err := client.VerifyTokenAuthority(ctx, &auth.VerifyTokenAuthorityRequest{Host: host, Salt: c.tokens.salt, Payload: payload})
	if err != nil || len(resp.Signed) < ed25519.SignatureSize {
		return false
	}
	// The form is that of NaCl: the signature, and what was signed.
	signature, said := resp.Signed[:ed25519.SignatureSize], resp.Signed[ed25519.SignatureSize:]
	return bytes.Equal(said, payload) && ed25519.Verify(key, payload, signature)
}
