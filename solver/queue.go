package solver

import "container/heap"

// class is a kind of work that has places of its own.
type class uint8

const (
	classExec   class = iota // processes
	classSource              // pulls and scans
	classTree                // lookups by content, and ops on trees
	classBuild               // build ops, which wait for graphs of their own
	classes
)

// queue holds the tasks of one class that are ready. It is guarded by Solver.mu.
type queue struct {
	places  int // how many of the class run at once
	workers int // how many goroutines work on it, at most places
	ready   readyHeap
}

// readyHeap has the task with the longest path ahead on top; of equals, the oldest.
type readyHeap []*task

func (h readyHeap) Len() int { return len(h) }

func (h readyHeap) Less(i, j int) bool {
	if h[i].ahead != h[j].ahead {
		return h[i].ahead > h[j].ahead
	}
	return h[i].seq < h[j].seq
}

func (h readyHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

func (h *readyHeap) Push(x any) {
	t := x.(*task)
	t.place = len(*h)
	*h = append(*h, t)
}

func (h *readyHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return t
}

// push queues t, whose state says that it is ready, and sees to it that somebody
// takes it. s.mu is held.
func (s *Solver) push(t *task) {
	c := t.class()
	q := &s.queues[c]
	heap.Push(&q.ready, t)
	if q.workers < q.places {
		q.workers++
		s.group.Go(func() { s.work(c) })
	}
}

// unqueue takes t out of its queue before its turn. s.mu is held.
func (s *Solver) unqueue(t *task) { heap.Remove(&s.queues[t.class()].ready, t.place) }

// raise moves t, if it waits in a queue, to where a longer path ahead puts it. s.mu is held.
func (s *Solver) raise(t *task) {
	if t.state == toIdentify || t.state == toRun {
		heap.Fix(&s.queues[t.class()].ready, t.place)
	}
}

// work takes tasks of one class, one after the other, until there are none.
func (s *Solver) work(c class) {
	q := &s.queues[c]
	for {
		s.mu.Lock()
		if len(q.ready) == 0 {
			q.workers--
			s.mu.Unlock()
			return
		}
		t := heap.Pop(&q.ready).(*task)
		stage := s.begin(t)
		s.mu.Unlock()
		if stage == identifying {
			s.identify(t)
		} else {
			s.run(t)
		}
	}
}
