package main

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/kiln-build/kiln/request"
)

func TestInterruptWriteThatNobodyReads(t *testing.T) {
	r, w := io.Pipe()
	defer r.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	outputs := []request.Output{{Writer: w}, {Dest: "file"}}
	letInterrupt(ctx, outputs)
	go cancel(errInterrupted)
	if _, err := outputs[0].Writer.Write([]byte("x")); !errors.Is(err, errInterrupted) {
		t.Errorf("Write = %v, want %v", err, errInterrupted)
	}
	if outputs[1].Writer != nil {
		t.Errorf("the file has the writer %v, want none", outputs[1].Writer)
	}
}
