package gateway

import (
	"context"
	"errors"
	"io"
	"syscall"
	"testing"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestParseSignal(t *testing.T) {
	for _, test := range []struct {
		name string
		want syscall.Signal // 0 is an error
	}{
		{"HUP", syscall.SIGHUP},
		{"SIGKILL", syscall.SIGKILL},
		// those of real time have a range of their own
		{"RTMIN", 34}, {"RTMIN+3", 37}, {"RTMAX-14", 50}, {"RTMAX", 64},
		{"RTMIN-1", 0}, {"RTMAX+1", 0}, {"RTMIN+x", 0},
		{"", 0}, {"NOSUCH", 0}, {"9", 0},
	} {
		got, err := parseSignal(test.name)
		if got != test.want || (err != nil) != (test.want == 0) {
			t.Errorf("%q is %d, %v; want %d", test.name, got, err, test.want)
		}
	}
}

// What a client sends to its process comes in order; what it sends too late is no
// mistake of its own, and what it never announced is.
func TestFeed(t *testing.T) {
	ctx := context.Background()
	p := &process{stdin: make(chan []byte, maxQueued), done: make(chan struct{})}
	for _, m := range []*gwpb.FdMessage{{Data: []byte("one ")}, {Data: []byte("two")}, {EOF: true}} {
		if err := p.feed(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	got, err := io.ReadAll(&input{p: p, ctx: ctx})
	if err != nil || string(got) != "one two" {
		t.Errorf("the process reads %q, %v", got, err)
	}
	if err := p.feed(ctx, &gwpb.FdMessage{Data: []byte("more")}); status.Code(err) != codes.OutOfRange {
		t.Errorf("more behind the end: %v", err)
	}
	close(p.done)
	if err := p.feed(ctx, &gwpb.FdMessage{Data: []byte("more")}); err != nil {
		t.Errorf("more when the process has ended: %v", err)
	}
	q := &process{done: make(chan struct{})}
	if err := q.feed(ctx, &gwpb.FdMessage{Fd: 0, Data: []byte("x")}); status.Code(err) != codes.OutOfRange {
		t.Errorf("input that was not announced: %v", err)
	}
}

// A reader ends with its process, or its client, whatever may come.
func TestInputEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := &process{stdin: make(chan []byte), done: make(chan struct{})}
	close(ended.done)
	if n, err := (&input{p: ended, ctx: ctx}).Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("of a process that has ended: %d, %v", n, err)
	}
	cancel()
	open := &process{stdin: make(chan []byte), done: make(chan struct{})}
	if n, err := (&input{p: open, ctx: ctx}).Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("of a client that has gone: %d, %v", n, err)
	}
}
