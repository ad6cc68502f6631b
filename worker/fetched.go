package worker

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/executor"
	"github.com/kiln-build/kiln/worker/proxy"
	"github.com/moby/buildkit/solver/pb"
)

// proxies is the proxy network's part of a worker.
type proxies struct {
	authority func() (*proxy.Authority, error) // made when a step first needs it
	fetched   *cache.Bucket

	mu   sync.Mutex // orders what keeps fetched small
	size int64      // of the values in fetched; -1 is not counted yet
}

func newProxies(c *cache.Cache) *proxies {
	return &proxies{authority: sync.OnceValues(proxy.NewAuthority), fetched: c.Bucket("fetched"), size: -1}
}

// rules are those of all builds that want a step at the moment of a request.
type rules struct {
	w   *Worker
	job *solver.Job
}

// Admit has every build's rules judge a request, each what the one before made of it.
func (r rules) Admit(ctx context.Context, url string) (string, error) {
	asked := false
	for _, s := range r.w.of(r.job) {
		if s.Proxy == nil {
			continue
		}
		asked = true
		var err error
		if url, err = s.Proxy.Admit(ctx, url); err != nil {
			return "", err
		}
	}
	if !asked {
		return "", errors.New("the build has ended")
	}
	return url, nil
}

// proxied puts a process behind a proxy, where its op says so, and gives nil where it
// does not. The caller closes the proxy when the process has ended.
func (w *Worker) proxied(job *solver.Job, op *pb.ExecOp, spec *executor.Spec) (*proxy.Proxy, error) {
	if !llb.IsProxied(op.Network) {
		return nil, nil
	}
	if !slices.ContainsFunc(w.of(job), func(s *session) bool { return s.Proxy != nil }) {
		return nil, fmt.Errorf("the network mode %d is for builds that asked for the proxy network", op.Network)
	}
	authority, err := w.proxies.authority()
	if err != nil {
		return nil, err
	}
	p, err := proxy.New(authority, rules{w, job})
	if err != nil {
		return nil, err
	}
	spec.Proxy = &executor.Proxy{Serve: p.Serve, Certificate: authority.PEM()}
	return p, nil
}

// tell says in a step's log what it asked its proxy for.
func tell(p *proxy.Proxy, to io.Writer) proxy.Record {
	if p == nil {
		return proxy.Record{}
	}
	p.Close()
	r := p.Record()
	r.Print(to)
	return r
}

// maxFetched bounds what is kept of what steps fetched; half of it goes when it is full.
const maxFetched = 64 << 20

// fetchedKey is where it is kept what a vertex fetched when an output of its came to
// the chain.
func fetchedKey(v *llb.Vertex, output int, chain cache.ChainID) []byte {
	d := v.Digest()
	b := binary.AppendUvarint(append([]byte{}, d[:]...), uint64(output))
	sum := sha256.Sum256(append(b, chain[:]...))
	return sum[:]
}

// keep keeps what a step fetched, for those who ask what an image was made of.
func (p *proxies) keep(v *llb.Vertex, outs []cache.ChainID, r proxy.Record) error {
	r.Requests = nil // they are in the log
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.size < 0 {
		p.size = 0
		if err := p.fetched.Each(nil, func(_, value []byte) error { p.size += int64(len(value)); return nil }); err != nil {
			p.size = -1
			return err
		}
	}
	if p.size > maxFetched {
		if err := p.shed(); err != nil {
			return err
		}
	}
	for i, chain := range outs {
		key := fetchedKey(v, i, chain)
		before, _ := p.fetched.Get(key) // of a step that came to the same again
		if err := p.fetched.Put(key, data); err != nil {
			return err
		}
		p.size += int64(len(data) - len(before))
	}
	return nil
}

// shed drops values, in the order of their keys, which is none: half of them.
func (p *proxies) shed() error {
	var drop [][]byte
	left := p.size
	if err := p.fetched.Each(nil, func(key, value []byte) error {
		if left > maxFetched/2 {
			drop = append(drop, slices.Clone(key))
			left -= int64(len(value))
		}
		return nil
	}); err != nil {
		return err
	}
	p.size = -1 // until all are gone it is not known
	for _, key := range drop {
		if err := p.fetched.Delete(key); err != nil {
			return err
		}
	}
	p.size = left
	return nil
}

// Fetched says what a vertex of the proxy network fetched when it came to the chains,
// one for each output. Where nobody knows, that is what was missed.
func (w *Worker) Fetched(v *llb.Vertex, outs []cache.ChainID) proxy.Record {
	for i, chain := range outs {
		data, ok := w.proxies.fetched.Get(fetchedKey(v, i, chain))
		var r proxy.Record
		if ok && json.Unmarshal(data, &r) == nil {
			return r
		}
	}
	return proxy.Record{Missed: []proxy.Missed{{Reason: proxy.ReasonForgotten}}}
}
