package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/daemon"
)

// guestDelay is how long a build goes on alone before others may join it: builds
// that find everything cached end before, and do no more than they must.
const guestDelay = 50 * time.Millisecond

// guests are the builds of other processes in the engine of one that builds itself.
// They may do whatever they could if they had the state folder, being of the same
// user.
type guests struct {
	engine *kiln.Engine
	root   string
	stderr io.Writer
	timer  *time.Timer

	mu     sync.Mutex // guards what is below
	closed bool
	server *daemon.Server // nil where none was started
	grpc   *grpc.Server
	served chan struct{} // closed when grpc has ended
}

// expectGuests has the engine serve the socket of the state folder from a moment
// from now on.
func expectGuests(e *kiln.Engine, root string, stderr io.Writer) *guests {
	g := &guests{engine: e, root: root, stderr: stderr}
	g.timer = time.AfterFunc(guestDelay, func() {
		if err := g.open(); err != nil {
			warnf(stderr, "other builds in this state folder wait for this one: %v", err)
		}
	})
	return g
}

// open begins to serve.
func (g *guests) open() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	server, err := daemon.New(g.engine, daemon.Options{Version: version, Entitlements: entitlements})
	if err != nil {
		return err
	}
	l, err := listenState(context.Background(), g.root)
	if err != nil {
		return err
	}
	g.server, g.grpc, g.served = server, server.GRPC(), make(chan struct{})
	go func() {
		defer close(g.served)
		g.grpc.Serve(l) // ends with Stop
	}()
	return nil
}

// close takes no more guests, and returns when their builds have ended, or at once
// when ctx ends: they go on by themselves then.
func (g *guests) close(ctx context.Context) {
	g.timer.Stop()
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	if g.server == nil {
		return
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		g.server.Drain()
	}()
	told := time.NewTimer(patience)
	defer told.Stop()
	for waiting := true; waiting; {
		select {
		case <-drained:
			stopSoon(g.grpc)
			waiting = false
		case <-ctx.Done():
			g.grpc.Stop()
			waiting = false
		case <-told.C:
			fmt.Fprintln(g.stderr, "kiln: this build is done; others that go on in this process are waited for (Ctrl-C leaves them to go on by themselves)")
		}
	}
	<-drained
	<-g.served
}
