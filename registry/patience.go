package registry

import (
	"context"
	"io"
	"math"
	"net/http"
	"net/http/httptrace"
	"time"
)

// commitRate is how fast, in bytes a second, a registry is counted on to look through a
// blob that has arrived and to put it in its place, before it answers. Those that keep
// blobs in an object store copy them once more for that: 8 MB/s is a slow one.
const commitRate = 8 << 20

// commitTime is how long the answer to a request may take that ends an upload.
func (l Limits) commitTime(size int64) time.Duration {
	return l.Header + time.Duration(size/commitRate)*time.Second
}

// answerTime is the key of how long each request of a context may wait for its answer,
// where that is not the usual limit.
type answerTime struct{}

// answering is a transport with the usual limit for the time to an answer, and one without.
type answering struct{ usual, patient http.RoundTripper }

// RoundTrip counts the time from when the request is written to when the answer's header
// is there, whatever comes before that.
func (a answering) RoundTrip(req *http.Request) (*http.Response, error) {
	limit, ok := req.Context().Value(answerTime{}).(time.Duration)
	if !ok {
		return a.usual.RoundTrip(req)
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	t := time.AfterFunc(math.MaxInt64, func() { cancel(errStalled) })
	context.AfterFunc(ctx, func() { t.Stop() })
	written := func(info httptrace.WroteRequestInfo) {
		if info.Err == nil && ctx.Err() == nil {
			t.Reset(limit)
		}
	}
	resp, err := a.patient.RoundTrip(req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: written})))
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	t.Stop() // one that is answered before it is written may be timed after that: its end stops it
	resp.Body = &endingBody{resp.Body, cancel}
	return resp, nil
}

// endingBody is a body whose request ends when it is closed.
type endingBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (b *endingBody) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}
