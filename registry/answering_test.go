package registry

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptrace"
	"testing"
	"time"
)

// exchange is a transport: what comes of a request that is written when told to.
type exchange func(ctx context.Context, written func(error)) (*http.Response, error)

func (e exchange) RoundTrip(req *http.Request) (*http.Response, error) {
	trace := httptrace.ContextClientTrace(req.Context())
	return e(req.Context(), func(err error) { trace.WroteRequest(httptrace.WroteRequestInfo{Err: err}) })
}

// The time to an answer is each request's own, and begins when it is written whole.
func TestAnswerTime(t *testing.T) {
	const limit = 20 * time.Millisecond
	do := func(e exchange) (*http.Response, error) {
		ctx := context.WithValue(t.Context(), answerTime{}, limit)
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://host/", nil)
		if err != nil {
			t.Fatal(err)
		}
		return answering{patient: e}.RoundTrip(req)
	}
	// going waits longer than the limit, and says whether the request may go on.
	going := func(ctx context.Context) (*http.Response, error) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(5 * limit):
			return &http.Response{Body: http.NoBody}, nil
		}
	}
	_, err := do(func(ctx context.Context, written func(error)) (*http.Response, error) {
		written(nil)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if !errors.Is(err, errStalled) {
		t.Errorf("without an answer: got %v", err)
	}
	if _, err := do(func(ctx context.Context, _ func(error)) (*http.Response, error) { return going(ctx) }); err != nil {
		t.Errorf("while it is written: got %v", err)
	}
	// One that is refused early is found not to be written, and sent again.
	var late func(error)
	refused, err := do(func(_ context.Context, written func(error)) (*http.Response, error) {
		late = written
		return &http.Response{Body: http.NoBody}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	refused.Body.Close()
	_, err = do(func(ctx context.Context, written func(error)) (*http.Response, error) {
		late(errors.New("the connection was closed"))
		late(nil)
		written(errors.New("the connection was closed"))
		return going(ctx)
	})
	if err != nil {
		t.Errorf("sent again: got %v", err)
	}
}
