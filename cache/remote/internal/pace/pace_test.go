package pace

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// patience is long enough for a machine that does other things besides.
const patience = time.Second

func serve(t *testing.T, h http.HandlerFunc) (*http.Client, string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return &http.Client{Transport: New(patience)}, s.URL
}

func get(c *http.Client, url string) ([]byte, error) {
	resp, err := c.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// TestStandsStill has a server stop before it answers and in the middle; a slow one
// that goes on is let be, and after two stops the server is not asked any more.
func TestStandsStill(t *testing.T) {
	var asked atomic.Int32
	c, url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch r.URL.Path {
		case "/slow":
			for range 10 {
				time.Sleep(patience / 8)
				_, _ = io.WriteString(w, "x")
				w.(http.Flusher).Flush()
			}
			return
		case "/middle":
			_, _ = io.WriteString(w, "some")
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
	})
	if data, err := get(c, url+"/slow"); err != nil || len(data) != 10 {
		t.Errorf("a slow server: %q, %v", data, err)
	}
	if _, err := get(c, url+"/first"); !errors.Is(err, ErrStalled) {
		t.Errorf("before the answer: %v", err)
	}
	if data, err := get(c, url+"/middle"); !errors.Is(err, ErrStalled) || string(data) != "some" {
		t.Errorf("in the middle: %q, %v", data, err)
	}
	before := asked.Load()
	if _, err := get(c, url+"/slow"); !errors.Is(err, ErrStalled) || asked.Load() != before {
		t.Errorf("after two: %v", err)
	}
}

// TestOursIsNotTheServers takes longer than the server may to read an answer, to make what
// is sent, and to find that what is sent is not wanted any more.
func TestOursIsNotTheServers(t *testing.T) {
	const long = patience + patience/2
	large := strings.Repeat("x", 16<<20) // more than lies between the two
	c, url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/large":
			_, _ = io.WriteString(w, large)
		case "/take":
			_, _ = io.Copy(io.Discard, r.Body)
		default:
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		}
	})
	t.Run("reading", func(t *testing.T) {
		resp, err := c.Get(url + "/large")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		first, err := io.ReadFull(resp.Body, make([]byte, 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(long)
		if rest, err := io.Copy(io.Discard, resp.Body); err != nil || int(rest)+first != len(large) {
			t.Errorf("%d and %d bytes, %v; want %d", first, rest, err, len(large))
		}
	})
	t.Run("making", func(t *testing.T) {
		slow := io.MultiReader(strings.NewReader("a"), wait(time.After(long)), strings.NewReader("b"))
		if resp, err := c.Post(url+"/take", "text/plain", slow); err != nil || resp.Body.Close() != nil {
			t.Error(err)
		}
	})
	t.Run("unwanted", func(t *testing.T) {
		var group sync.WaitGroup
		for range maxStalls {
			group.Go(func() {
				goOn := make(chan time.Time)
				req, err := http.NewRequest(http.MethodPut, url, io.MultiReader(strings.NewReader("a"), wait(goOn), strings.NewReader("b")))
				if err != nil {
					t.Error(err)
					return
				}
				req.ContentLength = 1 << 20 // more than a server reads before it refuses it
				resp, err := c.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				close(goOn) // the read returns after all is over
			})
		}
		group.Wait()
		time.Sleep(long)
	})
	if _, err := get(c, url+"/take"); err != nil {
		t.Errorf("the server was given up: %v", err)
	}
}

// wait is a reader of nothing, whose end comes when the channel gives something.
type wait <-chan time.Time

func (w wait) Read([]byte) (int, error) {
	<-w
	return 0, io.EOF
}

// TestDo counts the requests that an answer is worth.
func TestDo(t *testing.T) {
	for _, c := range []struct {
		name, retryAfter string
		status           int
		want             int32 // requests
	}{
		{"a good answer", "", 200, 1},
		{"one that stays", "", 404, 1},
		{"what the server cannot", "", 501, 1},
		{"an error that may pass", "", 503, 3},
		{"too often", "0", 429, 3},
		{"too often, for too long", "3600", 429, 1},
		{"too often, before now", "-5", 429, 1},
	} {
		var asked atomic.Int32
		client, url := serve(t, func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			if body, _ := io.ReadAll(r.Body); string(body) != "body" {
				t.Errorf("%s: the body is %q", c.name, body)
			}
			w.Header().Set("Retry-After", c.retryAfter)
			w.WriteHeader(c.status)
		})
		resp, err := Do(t.Context(), client, func() (*http.Request, error) {
			return http.NewRequest(http.MethodPut, url, strings.NewReader("body"))
		})
		if err != nil || resp.StatusCode != c.status || asked.Load() != c.want {
			t.Errorf("%s: %d requests, %v; want %d", c.name, asked.Load(), err, c.want)
		}
		if err == nil {
			resp.Body.Close()
		}
	}
}

func TestDoIsCancelled(t *testing.T) {
	client, url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "5")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Do(ctx, client, func() (*http.Request, error) {
		time.AfterFunc(20*time.Millisecond, cancel)
		return http.NewRequest(http.MethodGet, url, nil)
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was cancelled", err)
	}
}
