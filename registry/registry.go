// Package registry speaks the distribution API: it resolves references, fetches
// and pushes blobs and manifests, follows the hosts configuration (mirrors, plain
// HTTP, private CAs) and finds credentials.
//
// A reference names an image as docker does ("debian", "host:5000/a/b@sha256:…").
// Its host is the registry; an endpoint is a server that answers for that host:
// one of its mirrors, or itself. Reads ask the mirrors first and take the first
// endpoint that can answer; writes go to the registry itself.
//
// Nothing that a registry says is believed: bytes are checked against their
// digest and bounded by their size, manifests by 4 MiB, and credentials go to no
// other host than the one that they are for.
package registry

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"
)

// MaxManifest bounds manifests and configs, in bytes. BuildKit and containerd
// have the same bound, and so registries hold nothing larger.
const MaxManifest = 4 << 20

// Client speaks to registries. Its zero value works; it is safe for concurrent
// use, and must not be copied once used.
type Client struct {
	// Hosts is the configuration by host ("docker.io", "127.0.0.1:5000").
	Hosts map[string]HostConfig
	// Limits are how long and how often things are tried.
	Limits Limits
	// UserAgent is what registries are told; empty is "kiln".
	UserAgent string
	// Clock tells the time; nil is time.Now.
	Clock func() time.Time
	// Uploads is shared by clients that are not to send a blob to a registry twice;
	// nil shares nothing.
	Uploads *Uploads

	mu sync.Mutex // guards the fields below
	// transports are by endpoint address and settings, so that connections are reused.
	transports map[string]http.RoundTripper
	// logins hold the tokens that credentials led to. Sessions come and go in a
	// daemon, so that they are a bounded list, oldest first.
	logins []*login
	docker Docker // what nil Credentials stand for
}

// Limits are the times and counts of a client; zero fields take the default.
type Limits struct {
	Dial time.Duration // for a connection to open; 30 s
	// Header is the time between a request and the first line of its answer, longer where
	// that ends the upload of a large blob; 60 s.
	Header   time.Duration
	Stall    time.Duration // without a byte of a body; 30 s
	Attempts int           // tries of one request, or of a download without progress; 5
	Backoff  time.Duration // before the second try, doubled for each further one; 200 ms
	// RetryAfter bounds what a registry may make the client wait; 30 s.
	RetryAfter time.Duration
}

func (c *Client) clock() func() time.Time {
	if c.Clock == nil {
		return time.Now
	}
	return c.Clock
}

// limits gives c.Limits with the defaults filled in.
func (c *Client) limits() Limits {
	l := c.Limits
	setDefault(&l.Dial, 30*time.Second)
	setDefault(&l.Header, 60*time.Second)
	setDefault(&l.Stall, 30*time.Second)
	setDefault(&l.Attempts, 5)
	setDefault(&l.Backoff, 200*time.Millisecond)
	setDefault(&l.RetryAfter, 30*time.Second)
	return l
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Content opens a blob that is to be pushed; it may be asked more than once.
type Content func(ctx context.Context) (io.ReadCloser, error)

// manifestTypes are the media types that the manifests API serves.
var manifestTypes = []string{
	"application/vnd.oci.image.manifest.v1+json",
	"application/vnd.oci.image.index.v1+json",
	"application/vnd.docker.distribution.manifest.v2+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
}

// schema1Types are manifests of a format that registries gave up in 2019. They
// are asked for last, so that the error can say what the image is.
var schema1Types = []string{
	"application/vnd.docker.distribution.manifest.v1+prettyjws",
	"application/vnd.docker.distribution.manifest.v1+json",
}

// IsManifest reports whether a media type is that of a manifest or an index.
func IsManifest(mediaType string) bool {
	for _, t := range manifestTypes {
		if t == mediaType {
			return true
		}
	}
	return IsSchema1(mediaType)
}

// IsSchema1 reports whether a media type is that of a docker schema 1 manifest.
func IsSchema1(mediaType string) bool {
	return mediaType == schema1Types[0] || mediaType == schema1Types[1]
}
