package registry

import (
	"context"
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

// patient is the key of a context whose requests have a limit of their own for the time
// to their answers.
type patient struct{}

// awaiting gives a context whose requests may take that long to be answered, from when
// they are written; then cancel is called.
func awaiting(ctx context.Context, limit time.Duration, cancel context.CancelCauseFunc) context.Context {
	t := time.AfterFunc(math.MaxInt64, func() { cancel(errStalled) })
	context.AfterFunc(ctx, func() { t.Stop() })
	return httptrace.WithClientTrace(context.WithValue(ctx, patient{}, true), &httptrace.ClientTrace{
		WroteRequest:         func(httptrace.WroteRequestInfo) { t.Reset(limit) },
		GotFirstResponseByte: func() { t.Stop() },
	})
}

// answering is a transport with the usual limit for the time to an answer, and one without.
type answering struct{ usual, patient http.RoundTripper }

func (a answering) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Context().Value(patient{}) != nil {
		return a.patient.RoundTrip(req)
	}
	return a.usual.RoundTrip(req)
}
