package registry

import (
	"context"
	"fmt"
	"reflect"
	"sync"

	"oras.land/oras-go/v2/registry/remote/credentials"
)

// Credentials finds what to log in with.
type Credentials interface {
	// Credential gives user and password, or an identity token with user empty;
	// all empty is an anonymous access. The host is the one that is spoken to, as
	// BuildKit's sessions have it: "registry-1.docker.io" is Docker Hub's, and a
	// mirror is asked for under its own name.
	Credential(ctx context.Context, host string) (user, secret string, err error)
}

// Docker is the Credentials of docker's config.json and of the credential helpers
// that it names. The zero value reads $DOCKER_CONFIG or ~/.docker, when first asked.
type Docker struct {
	// File is the config file; empty is docker's own.
	File string

	once  sync.Once
	store *credentials.DynamicStore
	err   error
}

var _ Credentials = (*Docker)(nil)

// Credential looks a host up.
func (d *Docker) Credential(ctx context.Context, host string) (user, secret string, err error) {
	d.once.Do(func() {
		if d.File != "" {
			d.store, d.err = credentials.NewStore(d.File, credentials.StoreOptions{})
		} else {
			d.store, d.err = credentials.NewStoreFromDocker(credentials.StoreOptions{})
		}
	})
	if d.err != nil {
		return "", "", fmt.Errorf("reading docker's config: %w", d.err)
	}
	c, err := d.store.Get(ctx, credentials.ServerAddressFromRegistry(host))
	if err != nil {
		return "", "", fmt.Errorf("looking for the login to %s in docker's config %s: %w", host, d.store.ConfigPath(), err)
	}
	if c.RefreshToken != "" {
		return "", c.RefreshToken, nil
	}
	return c.Username, c.Password, nil
}

// Anonymous is the Credentials that logs in nowhere.
type Anonymous struct{}

// Credential gives none.
func (Anonymous) Credential(context.Context, string) (user, secret string, err error) {
	return "", "", nil
}

// maxLogins is how many Credentials a client remembers tokens for. One build has
// one; a daemon has as many as builds that run at once, and tokens live minutes.
const maxLogins = 64

// login is what one Credentials has led to.
type login struct {
	cred   Credentials
	passes *passes
}

// passes gives what cred has led to. Credentials that cannot be compared get what
// nobody shares.
func (c *Client) passes(cred Credentials) *passes {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.logins {
		if same(l.cred, cred) {
			return l.passes
		}
	}
	l := &login{cred: cred, passes: newPasses(c.clock())}
	if len(c.logins) == maxLogins {
		c.logins = append(c.logins[:0], c.logins[1:]...)
	}
	c.logins = append(c.logins, l)
	return l.passes
}

// same reports whether two Credentials are one: equal, or lists of equal elements.
// A pointer cannot come to mean another's login, since c.logins keeps it alive.
func same(a, b Credentials) bool {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	switch {
	case x.Type() != y.Type():
		return false
	case x.Kind() != reflect.Slice:
		return x.Comparable() && y.Comparable() && x.Equal(y)
	case x.Len() != y.Len():
		return false
	}
	for i := range x.Len() {
		if ex, ey := x.Index(i), y.Index(i); !ex.Comparable() || !ey.Comparable() || !ex.Equal(ey) {
			return false
		}
	}
	return true
}

// credentialError is a failure to find credentials, which no retry mends.
type credentialError struct {
	host string
	err  error
}

func (e *credentialError) Error() string {
	return fmt.Sprintf("finding the credentials for %s: %v", e.host, e.err)
}
func (e *credentialError) Unwrap() error { return e.err }
