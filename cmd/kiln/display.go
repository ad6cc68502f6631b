package main

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"
)

// display shows a build's events as they come.
type display struct {
	out  io.Writer
	ch   chan *client.SolveStatus
	done chan struct{}

	mu    sync.Mutex
	ended bool // guarded by mu: nothing more is shown

	warnings []client.VertexWarning // once done
	tails    *tails                 // nil where the display shows output itself
}

// Ways to show progress that show nothing, as buildx has them. progressQuiet is
// --quiet, which prints the image's id in the end.
const (
	progressNone  = "none"
	progressQuiet = "quiet"
)

// newDisplay makes the display of that mode. It has shown everything when close returns.
func newDisplay(mode string, stderr io.Writer) (*display, error) {
	if mode == progressNone || mode == progressQuiet {
		mode = string(progressui.QuietMode)
	}
	ui, err := progressui.NewDisplay(stderr, progressui.DisplayMode(mode))
	if err != nil {
		return nil, usagef("--progress %s: %v; the ways to show progress are auto, plain, tty, rawjson, quiet and none", mode, err)
	}
	d := &display{out: stderr, ch: make(chan *client.SolveStatus, 64), done: make(chan struct{})}
	if mode == string(progressui.QuietMode) || mode == string(progressui.RawJSONMode) {
		d.tails = new(tails)
	}
	go func() {
		defer close(d.done)
		// Not the build's own context: the display ends with the channel, when the
		// last lines of an interrupted build have been shown too.
		d.warnings, _ = ui.UpdateFrom(context.Background(), d.ch)
		for range d.ch { // a display that fails must not hold the build up
		}
	}()
	return d, nil
}

// status shows what happened. It is called by one goroutine at a time.
func (d *display) status(s *client.SolveStatus) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return
	}
	if d.tails != nil {
		d.tails.status(s)
	}
	d.ch <- s
}

// close ends the display once it has shown everything, warnings last. What is shown
// afterwards is not.
func (d *display) close(quiet bool) {
	d.mu.Lock()
	ended := d.ended
	d.ended = true
	d.mu.Unlock()
	if ended {
		return
	}
	close(d.ch)
	<-d.done
	if d.tails != nil {
		d.tails.show(d.out)
	}
	if quiet || len(d.warnings) == 0 {
		return
	}
	plural := "s"
	if len(d.warnings) == 1 {
		plural = ""
	}
	fmt.Fprintf(d.out, "\n%d warning%s found:\n", len(d.warnings), plural)
	for _, w := range d.warnings {
		fmt.Fprintf(d.out, " - %s\n", w.Short)
	}
}
