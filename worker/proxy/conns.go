package proxy

import (
	"bufio"
	"crypto/tls"
	"io"
	stdlog "log"
	"net"
	"sync"
)

// silent is where servers print what is wrong with the requests of a step, which is
// the step's own affair.
func silent() *stdlog.Logger { return stdlog.New(io.Discard, "", 0) }

// bounded is a listener of which some connections are open at a time only.
type bounded struct {
	net.Listener
	free  chan struct{}
	ended <-chan struct{}
}

func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.free <- struct{}{}:
	case <-b.ended:
		return nil, net.ErrClosed
	}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.free
		return nil, err
	}
	return &boundedConn{Conn: c, done: sync.OnceFunc(func() { <-b.free })}, nil
}

type boundedConn struct {
	net.Conn
	done func()
}

func (c *boundedConn) Close() error {
	defer c.done()
	return c.Conn.Close()
}

// tunnelConn is a connection whose first bytes were read with the request for a
// tunnel to the target.
type tunnelConn struct {
	net.Conn
	early  *bufio.Reader
	target string
}

func (c *tunnelConn) Read(b []byte) (int, error) {
	if c.early != nil {
		if n := c.early.Buffered(); n > 0 {
			return c.early.Read(b[:min(n, len(b))])
		}
		c.early = nil
	}
	return c.Conn.Read(b)
}

// queue is a listener for connections that are there already.
type queue struct {
	conns  chan *tls.Conn
	closed chan struct{}
	close  func()
}

func newQueue() *queue {
	q := &queue{conns: make(chan *tls.Conn), closed: make(chan struct{})}
	q.close = sync.OnceFunc(func() { close(q.closed) })
	return q
}

// put hands a connection over; false where nobody takes it any more.
func (q *queue) put(c *tls.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.closed:
		return false
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.close()
	return nil
}

func (q *queue) Addr() net.Addr { return &net.TCPAddr{} }
