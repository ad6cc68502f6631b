package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

// Made is what became of a layer.
type Made struct {
	DiffID blob.Digest
	// Digest and Size are those of the blob.
	Digest blob.Digest
	Size   int64
	// Chunks are what the blob is the concatenation of. An uncompressed layer has
	// none: Stream gives its bytes.
	Chunks []blob.ChunkID
	// Compressed counts the pieces that were compressed; the other Chunks were there.
	Compressed int
}

// Maker makes layers' blobs. Several may be made at once: they share the memory
// and the processors that one would have. Use NewMaker.
type Maker struct {
	// States, where it is set before the first use, spares reading the beginning
	// of a stream that has changed further on.
	States States

	files  Files
	chunks Chunks
	procs  int
	// tokens bound the pieces that are in memory. A piece takes one, in the order
	// of its stream, and gives it back when it has been hashed, and written where it
	// is to be; so the next piece always has one, and no two layers can wait for each
	// other.
	tokens chan struct{}

	mu          sync.Mutex
	compressors map[Method]*compressor // guarded by mu
	buffers     sync.Pool
}

// NewMaker gives a Maker that works on procs pieces at a time, 0 being one for
// each processor.
func NewMaker(f Files, c Chunks, procs int) *Maker {
	if procs <= 0 {
		procs = runtime.GOMAXPROCS(0)
	}
	m := &Maker{files: f, chunks: c, procs: procs, compressors: make(map[Method]*compressor)}
	// Three more than are worked on: one that is being hashed, one that is being
	// written, one that was just read.
	m.tokens = make(chan struct{}, procs+3)
	return m
}

// compressor gives the compressor for a method, made when first asked for.
func (m *Maker) compressor(how Method) (*compressor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c, ok := m.compressors[how]; ok {
		return c, nil
	}
	c, err := newCompressor(how, m.procs)
	if err == nil {
		m.compressors[how] = c
	}
	return c, err
}

// Make makes the blob of the layer that root is the tree of. Where diff, the
// DiffID, is known already, only pieces that are not kept as chunks are read.
func (m *Maker) Make(ctx context.Context, root tree.Entry, o Options, how Method, diff blob.Digest) (Made, error) {
	return m.MakeTo(ctx, nil, root, o, how, diff)
}

// MakeTo is Make, and writes the blob to w while it is made, where w is not nil: who
// wants it somewhere need not have it read again. After an error what was written is
// a part of the blob at most.
func (m *Maker) MakeTo(ctx context.Context, w io.Writer, root tree.Entry, o Options, how Method, diff blob.Digest) (Made, error) {
	r := &run{m: m, how: how, to: w, made: Made{DiffID: diff}}
	if diff.IsZero() {
		r.raw = sha256.New()
		r.states = m.States
	}
	if how.Compression != Uncompressed {
		r.out = sha256.New()
		var err error
		if r.c, err = m.compressor(how); err != nil {
			return Made{}, err
		}
	}
	return r.do(ctx, func(ctx context.Context, emit func(*piece) error) error {
		c := &cutter{emit: emit}
		w := &walker{nodes: m.files.Nodes, opts: o, emit: c.add}
		if err := w.walk(root); err != nil {
			return err
		}
		return c.end()
	})
}

// Recompress makes a blob of a tar stream that is there, as it is. The stream's
// DiffID must be diff. It cuts at fixed places: streams of other people's images
// are not edited.
func (m *Maker) Recompress(ctx context.Context, stream io.Reader, how Method, diff blob.Digest) (Made, error) {
	r := &run{m: m, how: how, raw: sha256.New(), out: sha256.New()}
	var err error
	if r.c, err = m.compressor(how); err != nil {
		return Made{}, err
	}
	made, err := r.do(ctx, func(ctx context.Context, emit func(*piece) error) error {
		for {
			p := &piece{stream: make([]byte, sliceSize)}
			n, err := io.ReadFull(stream, p.stream)
			if p.stream, p.size = p.stream[:n], int64(n); n > 0 {
				if err := emit(p); err != nil {
					return err
				}
			}
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				return nil
			}
			if err != nil {
				return fmt.Errorf("reading the layer: %w", err)
			}
		}
	})
	if err == nil && made.DiffID != diff {
		err = fmt.Errorf("the layer's tar stream is %s and should be %s", made.DiffID, diff)
	}
	return made, err
}

// run is the making of one blob.
type run struct {
	m      *Maker
	how    Method
	c      *compressor // nil for uncompressed
	states States      // nil where nothing is to be skipped

	raw  hash.Hash // of the stream; nil where the DiffID is known
	out  hash.Hash // of the blob; nil for uncompressed
	to   io.Writer // takes the blob's bytes; nil takes none
	made Made

	compressed atomic.Int64
}

// job is a piece on its way.
type job struct {
	planned
	raw []byte // the piece's bytes, where they are needed
	out []byte // the chunk
	cid blob.ChunkID
	buf *buffers

	rawReady, outReady chan struct{} // closed when raw is set; when out or err is
	err                error
	void               bool // the blob has failed: this is not to be written
}

// bytes gives what the piece is in the blob.
func (j *job) bytes() []byte {
	if j.out != nil {
		return j.out
	}
	return j.raw
}

// do runs plan, which gives the pieces, in one goroutine, works on each piece in
// one of its own, hashes them here in order, and writes them in one behind that:
// hashing a stream takes as long as writing it, and each is the work of one processor.
func (r *run) do(ctx context.Context, plan func(context.Context, func(*piece) error) error) (Made, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	jobs := make(chan *job, cap(r.m.tokens))
	var walkErr error
	var workers sync.WaitGroup
	workers.Go(func() {
		defer close(jobs)
		sk := &skipper{states: r.states, emit: func(p planned) error {
			select {
			case r.m.tokens <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			j := &job{planned: p, rawReady: make(chan struct{}), outReady: make(chan struct{})}
			workers.Go(func() { r.work(j) })
			jobs <- j
			return nil
		}}
		if walkErr = plan(ctx, sk.add); walkErr == nil {
			walkErr = sk.end()
		}
	})
	hashed := make(chan *job, cap(r.m.tokens))
	var writeErr error
	workers.Go(func() {
		for j := range hashed {
			if r.to != nil && !j.void && writeErr == nil {
				if _, writeErr = r.to.Write(j.bytes()); writeErr != nil {
					cancel()
				}
			}
			if j.buf != nil && cap(j.buf.raw) <= keptMemory {
				r.m.buffers.Put(j.buf)
			}
			j.p.release()
			<-r.m.tokens
		}
	})
	var err error
	for j := range jobs {
		if err == nil {
			err = r.take(j)
		}
		if j.void = err != nil; j.void {
			cancel() // the walk ends, and what it began is waited for
		}
		<-j.outReady
		hashed <- j
	}
	close(hashed)
	workers.Wait()
	if writeErr != nil {
		err = fmt.Errorf("writing the layer to the output: %w", writeErr)
	}
	if err == nil {
		err = walkErr
	}
	if err != nil {
		return Made{}, err
	}
	r.made.Compressed = int(r.compressed.Load())
	if r.raw != nil {
		r.raw.Sum(r.made.DiffID[:0])
	}
	if r.out != nil {
		r.out.Sum(r.made.Digest[:0])
	} else {
		r.made.Digest = r.made.DiffID
	}
	return r.made, nil
}

// take hashes a piece, which is the next in order.
func (r *run) take(j *job) error {
	<-j.rawReady
	if r.raw != nil && !j.skip {
		r.raw.Write(j.raw) // nothing where reading failed, which err says below
	}
	<-j.outReady
	if j.err != nil {
		return j.err
	}
	if err := r.hashState(j); err != nil {
		return err
	}
	if r.out == nil {
		r.made.Size += j.p.size
		return nil
	}
	r.out.Write(j.out)
	r.made.Size += int64(len(j.out))
	r.made.Chunks = append(r.made.Chunks, j.cid)
	return nil
}

// buffers are a piece's bytes before and after, to be used again.
type buffers struct{ raw, out []byte }

// work reads and compresses a piece, or finds its chunk.
func (r *run) work(j *job) {
	defer close(j.outReady)
	rawReady := sync.OnceFunc(func() { close(j.rawReady) })
	defer rawReady()
	hashes := r.raw != nil && !j.skip // for the DiffID
	if r.c != nil {
		var known bool
		if j.cid, known = r.m.chunkID(j.planned, r.how); known {
			if j.err = r.find(j); j.err != nil {
				return
			}
		}
	}
	missing := r.c != nil && j.out == nil
	written := r.c == nil && r.to != nil
	if !hashes && !missing && !written {
		return
	}
	b, _ := r.m.buffers.Get().(*buffers)
	if b == nil {
		b = new(buffers)
	}
	j.buf = b
	if cap(b.raw) < int(j.p.size) {
		b.raw = make([]byte, 0, j.p.size)
	}
	if b.raw, j.err = j.p.read(&r.m.files, b.raw[:0]); j.err != nil {
		return
	}
	j.raw = b.raw
	rawReady()
	if missing {
		j.err = r.compress(j)
	}
}

// find looks for the chunk of a piece; one that is not there leaves j.out nil.
func (r *run) find(j *job) (err error) {
	if j.out, err = r.m.chunks.Chunk(j.cid); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading a chunk of a layer: %w", err)
	}
	return nil
}

// compress makes the chunk of a piece that was read, unless the same bytes were
// compressed as another slice.
func (r *run) compress(j *job) error {
	if j.p.slice() {
		content := contentID(j.buf.raw)
		j.cid = content.chunk(r.how)
		if err := r.m.remember(j.id, content); err != nil {
			return fmt.Errorf("keeping the name of a chunk: %w", err)
		}
		if err := r.find(j); err != nil || j.out != nil {
			return err
		}
	}
	var err error
	if j.buf.out, err = r.c.compress(j.buf.out[:0], j.buf.raw); err != nil {
		return err
	}
	j.out = j.buf.out
	r.compressed.Add(1)
	if err := r.m.chunks.PutChunk(j.cid, j.out); err != nil {
		return fmt.Errorf("keeping a chunk of a layer: %w", err)
	}
	return nil
}
