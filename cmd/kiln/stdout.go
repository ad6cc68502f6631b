package main

import (
	"context"
	"io"

	"github.com/kiln-build/kiln"
)

// interruptible is a writer whose Write returns when ctx ends, though nobody
// reads what it writes to: Ctrl-C ends `kiln build -o - . | less` too. The write that was
// given up goes on until the process ends.
type interruptible struct {
	ctx context.Context
	w   io.Writer
}

func (i interruptible) Write(p []byte) (int, error) {
	type written struct {
		n   int
		err error
	}
	done := make(chan written, 1)
	go func() {
		n, err := i.w.Write(p)
		done <- written{n, err}
	}()
	select {
	case w := <-done:
		return w.n, w.err
	case <-i.ctx.Done():
		return 0, context.Cause(i.ctx)
	}
}

// letInterrupt makes the outputs that go to a stream end with ctx.
func letInterrupt(ctx context.Context, outputs []kiln.Output) {
	for i, o := range outputs {
		if o.Writer != nil {
			outputs[i].Writer = interruptible{ctx, o.Writer}
		}
	}
}
