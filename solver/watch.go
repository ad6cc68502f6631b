package solver

import (
	"bytes"
	"fmt"
	"sync"
	"time"

	"github.com/kiln-build/kiln/llb"
)

const (
	// maxQueuedOutput bounds the output that waits for an observer.
	maxQueuedOutput = 1 << 20
	// eventCost is what an event counts for besides its text.
	eventCost = 256
	// maxBacklog bounds the output of a running vertex that is kept for builds
	// that join it late.
	maxBacklog = 64 << 10
)

// phase is what an observer has been told of a vertex last.
type phase uint8

const (
	untold phase = iota
	toldStarted
	toldCompleted
	toldCached
)

// watch is the queue of events between the solver and one observer, and the
// goroutine that empties it. All events are put into it by quick calls. The zero
// watch, of a build without an observer, takes them and does nothing.
type watch struct {
	observe func(Event)
	ended   chan struct{} // closed when the goroutine has ended

	mu     sync.Mutex
	filled sync.Cond
	closed bool
	queue  []Event
	output int // what output, progress and warnings in queue count for
	known  map[llb.Digest]*watched
	latest map[progressKey]int // the event of queue that says how far a part is
}

// watched is what a watch knows of a vertex.
type watched struct {
	subject Subject // its time is unset
	told    phase
	lost    int // bytes of output left out since the last notice
}

type progressKey struct {
	vertex llb.Digest
	id     string
}

func newWatch(observe func(Event)) *watch {
	w := &watch{observe: observe}
	if observe == nil {
		return w
	}
	w.filled.L = &w.mu
	w.ended = make(chan struct{})
	w.known = make(map[llb.Digest]*watched)
	w.latest = make(map[progressKey]int)
	go w.deliver()
	return w
}

// on says whether anybody observes.
func (w *watch) on() bool { return w.observe != nil }

// deliver hands events to the observer until the watch is closed and empty.
func (w *watch) deliver() {
	defer close(w.ended)
	for {
		w.mu.Lock()
		for len(w.queue) == 0 && !w.closed {
			w.filled.Wait()
		}
		batch := w.queue
		w.queue, w.output = nil, 0
		clear(w.latest)
		w.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		for _, e := range batch {
			w.observe(e)
		}
	}
}

// close waits until all events are delivered. What comes later is left out.
func (w *watch) close() {
	if !w.on() {
		return
	}
	w.mu.Lock()
	w.closed = true
	w.filled.Signal()
	w.mu.Unlock()
	<-w.ended
}

// put queues an event. w.mu is held.
func (w *watch) put(e Event) {
	if w.closed {
		return
	}
	w.queue = append(w.queue, e)
	w.filled.Signal()
}

// of finds what is known of a vertex. w.mu is held.
func (w *watch) of(v *llb.Vertex) *watched {
	k := w.known[v.Digest()]
	if k == nil {
		k = &watched{subject: subjectOf(v)}
		w.known[v.Digest()] = k
	}
	return k
}

// at is the subject of an event that happens now.
func (k *watched) at(t time.Time) Subject {
	s := k.subject
	s.Time = t
	return s
}

// started announces a start, unless the observer knows already; it says which.
func (w *watch) started(v *llb.Vertex, at time.Time, why string) bool {
	if !w.on() {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.of(v)
	if k.told == toldStarted {
		return false
	}
	k.told = toldStarted
	w.put(VertexStarted{Subject: k.at(at), Why: why})
	return true
}

func (w *watch) completed(v *llb.Vertex, started, at time.Time, err error) {
	if !w.on() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.of(v)
	if k.told != toldStarted {
		return
	}
	k.told = toldCompleted
	w.notice(k, at)
	w.put(VertexCompleted{Subject: k.at(at), Started: started, Err: err})
}

func (w *watch) cached(v *llb.Vertex, at time.Time, why string) {
	if !w.on() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.of(v)
	if k.told == toldStarted || k.told == toldCached {
		return
	}
	k.told = toldCached
	w.put(VertexCached{Subject: k.at(at), Why: why})
}

// log queues output, of which it makes a copy, or leaves it out if too much waits.
func (w *watch) log(v *llb.Vertex, at time.Time, stream int, data []byte) {
	if !w.on() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.of(v)
	if !w.room(eventCost + len(data)) {
		k.lost += len(data)
		return
	}
	w.notice(k, at)
	w.put(VertexLog{Subject: k.at(at), Stream: stream, Data: bytes.Clone(data)})
}

// room says whether something of that size may be queued, and counts it if so. What
// starts and completes needs no room: a graph has only so many vertices. w.mu is held.
func (w *watch) room(size int) bool {
	if w.output+size > maxQueuedOutput {
		return false
	}
	w.output += size
	return true
}

// notice says how much output of a vertex was left out. w.mu is held.
func (w *watch) notice(k *watched, at time.Time) {
	if k.lost == 0 {
		return
	}
	text := fmt.Sprintf("\n[%d bytes of output left out: they came faster than they were read]\n", k.lost)
	k.lost = 0
	w.put(VertexLog{Subject: k.at(at), Stream: 2, Data: []byte(text)})
}

// progress queues how far a part is, in place of what waits of the same part.
func (w *watch) progress(v *llb.Vertex, at time.Time, p Progress) {
	if !w.on() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	e := VertexProgress{Subject: w.of(v).at(at), Progress: p}
	k := progressKey{v.Digest(), p.ID}
	if i, ok := w.latest[k]; ok {
		w.queue[i] = e
		return
	}
	if !w.room(eventCost) {
		return
	}
	w.latest[k] = len(w.queue)
	w.put(e)
}

func (w *watch) warn(v *llb.Vertex, at time.Time, text string) {
	if !w.on() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.room(eventCost + len(text)) {
		return
	}
	w.put(Warning{Subject: w.of(v).at(at), Text: text})
}

// backlog is the last output of a running vertex.
type backlog struct {
	pieces []piece
	size   int
	lost   int
}

type piece struct {
	at     time.Time
	stream int
	data   []byte
}

func (b *backlog) add(at time.Time, stream int, data []byte) {
	if over := len(data) - maxBacklog; over > 0 {
		b.lost += over
		data = data[over:]
	}
	b.pieces = append(b.pieces, piece{at, stream, bytes.Clone(data)})
	b.size += len(data)
	drop := 0
	for b.size > maxBacklog {
		n := len(b.pieces[drop].data)
		b.size -= n
		b.lost += n
		b.pieces[drop].data = nil
		drop++
	}
	b.pieces = b.pieces[drop:]
}

// replay tells a build what was put out before it came.
func (b *backlog) replay(w *watch, v *llb.Vertex) {
	if b.lost > 0 && len(b.pieces) > 0 {
		text := fmt.Sprintf("[%d bytes of earlier output left out]\n", b.lost)
		w.log(v, b.pieces[0].at, 2, []byte(text))
	}
	for _, p := range b.pieces {
		w.log(v, p.at, p.stream, p.data)
	}
}
