// Package caller makes what a client's session offers into what a build is lent.
//
// A client that asks for a build keeps a connection open for as long as it lasts,
// its session, over which the daemon calls the client: for folders, secrets, ssh
// agents, logins and image layouts, and to hand over outputs. A Caller is that
// session as one build uses it. A Mirror is the copy of a client's folder that the
// state folder keeps, so that the next build receives only what has changed.
//
// A client offers what it likes to: whatever it does not have is to the build as
// if nobody had it. Nothing that a client sends is believed: paths stay inside of
// the mirror, a file may be no longer than it was said to be.
package caller

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/moby/buildkit/session"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/worker"
)

// wait is how long a session may take to come, which a client opens beside its
// request; longer than with BuildKit, for a hundred clients at once on a machine
// that is busy.
const wait = 20 * time.Second

// greeting is how long a build that is done waits for a session that it did not use.
const greeting = time.Second

// Caller is a client's session as one build uses it. It is safe for concurrent use.
type Caller struct {
	manager *session.Manager
	id      string
	mirrors *Mirrors
	tokens  *Tokens
	temp    string
	here    map[string]string // folders that are read in place, by name
	user    string            // who the client is; empty is not known

	mu   sync.Mutex // guards what is below
	conn session.Caller
	held map[string]*mirror // by session and name of the folder
	used map[tokenKey]bool  // the tokens of others that this build was given
}

// New gives the session of that id, which may not be there yet. Folders that are on
// their way to the client are made below temp. Close must be called when the build
// has ended.
func New(m *session.Manager, id string, mirrors *Mirrors, tokens *Tokens, temp string) *Caller {
	return &Caller{
		manager: m, id: id, mirrors: mirrors, tokens: tokens, temp: temp,
		held: make(map[string]*mirror), used: make(map[tokenKey]bool),
	}
}

// ReadInPlace has folders read where they are, which the client may name by a path:
// it sees this machine's files as the daemon does. It is called before the build.
func (c *Caller) ReadInPlace(folders map[string]string) { c.here = folders }

// ActsFor says who the client is. It is called before the build.
func (c *Caller) ActsFor(user string) { c.user = user }

// Arrived waits until the session of a client that was not asked for anything has
// come and has answered. Clients that are hung up on in the middle of their greeting
// take a second to notice.
func (c *Caller) Arrived(ctx context.Context) {
	c.mu.Lock()
	asked := c.conn != nil
	c.mu.Unlock()
	if c.id == "" || asked {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, greeting)
	defer cancel()
	conn, err := c.get(ctx)
	if err != nil {
		return // a client that does not come is not waited for
	}
	_, _ = grpc_health_v1.NewHealthClient(conn.Conn()).Check(conn.Context(ctx), &grpc_health_v1.HealthCheckRequest{})
}

// Session gives what the client lends. A build without a session is lent nothing,
// and logs in nowhere.
func (c *Caller) Session() worker.Session {
	if c.id == "" {
		return worker.Session{Credentials: registry.Anonymous{}}
	}
	return worker.Session{Locals: c, Secrets: c, SSH: c, Layouts: c, CacheFolders: c, Uploads: c, Credentials: c}
}

// Close lets go of the mirrors.
func (c *Caller) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.held {
		c.mirrors.release(m)
	}
	clear(c.held)
}

// get gives the connection, waiting for it the first time.
func (c *Caller) get(ctx context.Context) (session.Caller, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		return c.conn, nil
	}
	if c.id == "" {
		return nil, fmt.Errorf("the build has no session: %w", fs.ErrNotExist)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	conn, err := c.manager.Get(ctx, c.id, false)
	if err != nil {
		return nil, err
	}
	c.conn = conn
	return conn, nil
}

// missing reports whether a client's answer says that it does not have a thing.
func missing(err error) bool {
	code := codeOf(err)
	return code == codes.NotFound || code == codes.Unimplemented
}

// codeOf gives the code of a client's error; OK where it has none.
func codeOf(err error) codes.Code {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return codes.OK
	}
	return s.GRPCStatus().Code()
}
