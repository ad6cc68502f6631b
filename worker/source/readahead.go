package source

import (
	"io"
	"sync"
)

const (
	aheadSize  = 256 << 10 // of one piece
	aheadCount = 8         // pieces that wait, at most
)

var aheadBuffers = sync.Pool{New: func() any { return new([aheadSize]byte) }}

// readAhead reads in a goroutine of its own, so that what makes the bytes and
// what takes them go on at the same time. Close waits for the goroutine.
type readAhead struct {
	pieces chan piece
	stop   chan struct{}
	done   chan struct{}
	once   sync.Once

	now piece // what Read gives from
	off int
}

type piece struct {
	buf *[aheadSize]byte
	n   int
	err error
}

func newReadAhead(r io.Reader) *readAhead {
	a := &readAhead{pieces: make(chan piece, aheadCount), stop: make(chan struct{}), done: make(chan struct{})}
	go a.run(r)
	return a
}

func (a *readAhead) run(r io.Reader) {
	defer close(a.done)
	for {
		p := piece{buf: aheadBuffers.Get().(*[aheadSize]byte)}
		// Full pieces, so that a reader in small steps is called less often; the
		// error is that of the stream and not of an incomplete piece.
		for p.n < len(p.buf) && p.err == nil {
			var n int
			n, p.err = r.Read(p.buf[p.n:])
			p.n += n
		}
		select {
		case a.pieces <- p:
		case <-a.stop:
			aheadBuffers.Put(p.buf)
			return
		}
		if p.err != nil {
			return
		}
	}
}

func (a *readAhead) Read(b []byte) (int, error) {
	for a.off == a.now.n {
		if a.now.err != nil {
			return 0, a.now.err
		}
		a.release()
		a.now, a.off = <-a.pieces, 0
	}
	n := copy(b, a.now.buf[a.off:a.now.n])
	a.off += n
	return n, nil
}

func (a *readAhead) release() {
	if a.now.buf != nil {
		aheadBuffers.Put(a.now.buf)
		a.now.buf = nil
	}
}

// Close ends the reading and waits for the goroutine, whose reader must end with
// the context that it belongs to.
func (a *readAhead) Close() error {
	a.once.Do(func() { close(a.stop) })
	<-a.done
	return nil
}
