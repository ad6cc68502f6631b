// Package remote is the command as a client of a daemon, kiln's or any other of
// BuildKit's API: it turns a request.Request into BuildKit's own client calls.
//
// While a build goes on the client lends the daemon what the request names on this
// machine, over a connection of its own, the session: folders, image layouts,
// secrets, ssh agents and the logins of docker's configuration. Outputs that are
// files come back over it.
//
// A kiln daemon that a socket leads to, with the same user and the same mounts,
// reads the folders in place. It is told where they are in a header of the request
// (request.FolderHeader), which other daemons do not look at.
package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containerd/log"
	"github.com/moby/buildkit/client"
	_ "github.com/moby/buildkit/client/connhelper/dockercontainer" // docker-container://
	_ "github.com/moby/buildkit/client/connhelper/kubepod"         // kube-pod://
	_ "github.com/moby/buildkit/client/connhelper/podmancontainer" // podman-container://
	_ "github.com/moby/buildkit/client/connhelper/ssh"             // ssh://
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/request"
)

// Address says how a daemon is reached.
type Address struct {
	// URL is unix:///PATH, tcp://HOST:PORT or another that BuildKit's clients take.
	URL string
	// CA, Cert and Key are files of TLS; ServerName is what the certificate says
	// where that is not the host of the URL.
	CA, Cert, Key, ServerName string
	// Dial connects, where that is not by the URL.
	Dial func(context.Context) (net.Conn, error)
}

// answer is how long a daemon may take to say that it is there.
const answer = 20 * time.Second

// Client is a connection to a daemon. It is safe for concurrent use.
type Client struct {
	conn *client.Client
	url  string
	// near says that the daemon is on this machine, and may read folders in place.
	near bool
	// kiln says that the daemon is kiln's.
	kiln bool
}

// kilnPackage is what a kiln daemon says that it is.
const kilnPackage = "github.com/kiln-build/kiln"

// Dial connects to a daemon, and asks whether it is there.
func Dial(ctx context.Context, a Address) (*Client, error) {
	c, err := open(ctx, a)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	info, err := c.conn.Info(ctx)
	if err != nil && grpcerrors.Code(err) != codes.Unimplemented { // daemons of old have no Info
		return nil, errors.Join(fmt.Errorf("connecting to %s: %w", a.URL, err), c.Close())
	}
	c.kiln = err == nil && info.BuildkitVersion.Package == kilnPackage
	return c, nil
}

// Open gives a client of a kiln daemon that is known to be there.
func Open(ctx context.Context, a Address) (*Client, error) {
	c, err := open(ctx, a)
	if err != nil {
		return nil, err
	}
	c.kiln = true
	return c, nil
}

func open(ctx context.Context, a Address) (*Client, error) {
	// The libraries print what they find odd; what went wrong comes as an error.
	if err := log.SetLevel("error"); err != nil {
		return nil, err
	}
	var opts []client.ClientOpt
	if a.CA != "" || a.Cert != "" || a.Key != "" || a.ServerName != "" {
		if a.CA != "" {
			opts = append(opts, client.WithServerConfig(a.ServerName, a.CA))
		} else {
			opts = append(opts, client.WithServerConfigSystem(a.ServerName))
		}
		if a.Cert != "" || a.Key != "" {
			opts = append(opts, client.WithCredentials(a.Cert, a.Key))
		}
	}
	if a.Dial != nil {
		opts = append(opts, client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return a.Dial(ctx) }))
	}
	conn, err := client.New(ctx, a.URL, opts...)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", a.URL, err)
	}
	return &Client{conn: conn, url: a.URL, near: isSocket(a.URL)}, nil
}

// isSocket reports whether the daemon is on this machine.
func isSocket(url string) bool { return len(url) > 5 && url[:5] == "unix:" }

// Close hangs up.
func (c *Client) Close() error { return c.conn.Close() }

// Usage lists what the daemon holds, largest first.
func (c *Client) Usage(ctx context.Context) ([]request.Usage, error) {
	list, err := c.conn.DiskUsage(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking %s what it holds: %w", c.url, err)
	}
	out := make([]request.Usage, 0, len(list))
	for i := range list {
		out = append(out, usage(list[len(list)-1-i]))
	}
	return out, nil
}

// Prune has the daemon collect, and gives what went.
func (c *Client) Prune(ctx context.Context, p request.Prune) ([]request.Usage, error) {
	for _, d := range []request.DiskSpace{p.MaxUsed, p.MinFree, p.Reserved} {
		if d.Percent != 0 {
			return nil, fmt.Errorf("%d%% of the disk of %s cannot be worked out here: give bytes, 10GB for one", d.Percent, c.url)
		}
	}
	opts := []client.PruneOption{client.WithKeepOpt(p.KeepDuration, p.Reserved.Bytes, p.MaxUsed.Bytes, p.MinFree.Bytes)}
	if p.All {
		opts = append(opts, client.PruneAll)
	}
	if p.Filter != nil {
		// The daemon's language of filters is another: what they hold for is named.
		all, err := c.Usage(ctx)
		if err != nil {
			return nil, err
		}
		var ids filter
		for _, u := range all {
			if p.Filter(u) {
				ids = append(ids, "id=="+u.ID)
			}
		}
		if len(ids) == 0 {
			return nil, nil
		}
		opts = append(opts, ids)
	}
	ch := make(chan client.UsageInfo)
	done := make(chan error, 1)
	go func() {
		done <- c.conn.Prune(ctx, ch, opts...)
		close(ch)
	}()
	var gone []request.Usage
	for u := range ch {
		gone = append(gone, usage(&u))
	}
	if err := <-done; err != nil {
		return nil, fmt.Errorf("having %s collect: %w", c.url, err)
	}
	return gone, nil
}

// filter names the records that a daemon may collect.
type filter []string

// SetPruneOption adds the filter.
func (f filter) SetPruneOption(info *client.PruneInfo) { info.Filter = f }

func usage(u *client.UsageInfo) request.Usage {
	out := request.Usage{
		ID: u.ID, Kind: string(u.RecordType), Description: u.Description, Size: u.Size, Shared: u.Shared, InUse: u.InUse,
		Created: u.CreatedAt, Uses: u.UsageCount, Parents: u.Parents,
	}
	if u.LastUsedAt != nil {
		out.LastUsed = *u.LastUsedAt
	}
	return out
}
