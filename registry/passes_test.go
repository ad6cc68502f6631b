package registry

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestPassesAreMadeOnce has many want a pass at once: one makes it, and what comes of
// that, also an error, is for all, unless it is that the maker was called off.
func TestPassesAreMadeOnce(t *testing.T) {
	refused := errors.New("refused")
	for _, c := range []struct {
		name    string
		off     bool  // the maker is called off
		err     error // of the first that makes it
		fetches int
		want    error // of the others
	}{
		{"made", false, nil, 1, nil},
		{"refused", false, refused, 1, refused},
		{"called off", true, context.Canceled, 2, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPasses(time.Now)
				fetches := 0
				end := make(chan struct{})
				fetch := func() (pass, error) {
					if fetches++; fetches == 1 {
						<-end
						return pass{header: "first"}, c.err
					}
					return pass{header: "second"}, nil
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() {
					if _, err := p.obtain(ctx, passKey{"host", "a"}, nil, fetch); !errors.Is(err, c.err) {
						t.Errorf("the first got %v, want %v", err, c.err)
					}
				}()
				synctest.Wait()
				for range 5 {
					go func() {
						header, err := p.obtain(t.Context(), passKey{"host", "a"}, nil, fetch)
						if !errors.Is(err, c.want) || (err == nil) != (header != "") {
							t.Errorf("another got %q, %v, want the error %v", header, err, c.want)
						}
					}()
				}
				synctest.Wait()
				if c.off {
					cancel()
				}
				close(end)
				synctest.Wait()
				if fetches != c.fetches {
					t.Errorf("it was made %d times, want %d", fetches, c.fetches)
				}
			})
		})
	}
}
