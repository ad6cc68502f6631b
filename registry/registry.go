// Package registry speaks the distribution API: it resolves references, fetches
// and pushes blobs and manifests, follows the hosts configuration (mirrors, plain
// HTTP, private CAs) and finds credentials.
package registry

import (
	"context"
	"io"

	"github.com/kiln-build/kiln/cache/blob"
)

// Credentials finds what to log in with.
type Credentials interface {
	// Credential gives user and password, or an identity token with user empty;
	// all empty is an anonymous access.
	Credential(ctx context.Context, host string) (user, secret string, err error)
}

// HostConfig is one [registry."host"] table of the configuration file, in the
// keys of buildkitd.toml.
type HostConfig struct {
	Mirrors   []string  `toml:"mirrors"`
	HTTP      *bool     `toml:"http"`     // plain HTTP; unset: only for loopback addresses
	Insecure  *bool     `toml:"insecure"` // do not verify the server's certificate
	CAs       []string  `toml:"ca"`       // files
	KeyPairs  []KeyPair `toml:"keypair"`
	ConfigDir []string  `toml:"tlsconfigdir"`
}

// KeyPair names the files of a client certificate.
type KeyPair struct {
	Key  string `toml:"key"`
	Cert string `toml:"cert"`
}

// Client speaks to registries. Its zero value works; it is safe for concurrent use.
type Client struct {
	// Hosts is the configuration by host ("docker.io", "127.0.0.1:5000").
	Hosts map[string]HostConfig
}

// Resolve gives the descriptor of what ref names now, asking mirrors first.
func (c *Client) Resolve(ctx context.Context, cred Credentials, ref string) (blob.Descriptor, error) {
	panic("unwritten")
}

// Fetch reads a blob or manifest of ref's repository; the reader fails where the
// bytes are not those of d. A download that breaks off is resumed.
func (c *Client) Fetch(ctx context.Context, cred Credentials, ref string, d blob.Descriptor) (io.ReadCloser, error) {
	panic("unwritten")
}

// Content opens a blob that is to be pushed; it may be asked more than once.
type Content func(ctx context.Context) (io.ReadCloser, error)

// Push puts a blob into ref's repository unless it is there, mounting it from one
// of the origins ("host/name") where the registry can. pushed is false where
// nothing had to be sent.
func (c *Client) Push(ctx context.Context, cred Credentials, ref string, d blob.Descriptor, origins []string, open Content) (pushed bool, err error) {
	panic("unwritten")
}

// PushManifest puts a manifest or index into ref's repository, and tags it where ref has a tag.
func (c *Client) PushManifest(ctx context.Context, cred Credentials, ref string, d blob.Descriptor, data []byte) error {
	panic("unwritten")
}
