package main

import (
	"context"
	"io"
	"sync/atomic"

	"github.com/kiln-build/kiln/request"
)

// interruptible is a writer whose Write returns when ctx ends, though nobody
// reads what it writes to: Ctrl-C ends `kiln build -o - . | less` too. The write that was
// given up goes on until the process ends.
type interruptible struct {
	ctx   context.Context
	w     io.Writer
	begun atomic.Bool // something was written: no other build can begin anew
}

func (i *interruptible) Write(p []byte) (int, error) {
	i.begun.Store(true)
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
func letInterrupt(ctx context.Context, outputs []request.Output) {
	for i, o := range outputs {
		if o.Writer != nil {
			outputs[i].Writer = &interruptible{ctx: ctx, w: o.Writer}
		}
	}
}

// begun reports whether an output was written to that cannot be begun again.
func begun(outputs []request.Output) bool {
	for _, o := range outputs {
		if i, ok := o.Writer.(*interruptible); ok && i.begun.Load() {
			return true
		}
	}
	return false
}
