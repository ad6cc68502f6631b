package remote

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	contentlocal "github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/ociindex"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/kiln-build/kiln/request"
)

// ErrGone says that the daemon ended before the build did, or would not begin it.
var ErrGone = errors.New("the daemon has gone")

// dockerfileFrontend is the frontend of Dockerfiles that daemons have.
const dockerfileFrontend = "dockerfile.v0"

// Build has the daemon build. show is told of all that happens, by one goroutine.
func (c *Client) Build(ctx context.Context, r *request.Request, show func(*client.SolveStatus)) (*request.Result, error) {
	var result *request.Result
	err := c.run(ctx, r, show, func(ctx context.Context, opt *client.SolveOpt, ch chan *client.SolveStatus) (err error) {
		result, err = c.solve(ctx, r, opt, ch)
		return err
	})
	if err != nil {
		return nil, err
	}
	result.Digest = result.Metadata["containerimage.digest"]
	if r.Provenance {
		if result.Provenance, err = c.provenance(ctx, r.Ref); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// run calls the daemon with what a request comes to.
func (c *Client) run(ctx context.Context, r *request.Request, show func(*client.SolveStatus), call func(context.Context, *client.SolveOpt, chan *client.SolveStatus) error) error {
	if err := c.refuse(r); err != nil {
		return err
	}
	if r.ProxyNetwork && !c.kiln {
		if err := c.knowsProxy(ctx); err != nil {
			return err
		}
	}
	in, err := r.Inputs(lookup)
	if err != nil {
		return err
	}
	release, err := holdDockerfile(r, in)
	if err != nil {
		return err
	}
	defer release()
	opt, err := c.options(r, in)
	if err != nil {
		return err
	}
	ch := make(chan *client.SolveStatus, 16)
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		for s := range ch {
			show(s)
		}
	}()
	if c.near {
		ctx = nameFolders(ctx, in.Folders)
	}
	err = call(ctx, opt, ch)
	<-shown
	if err != nil {
		return c.explain(ctx, err)
	}
	return nil
}

// refuse says which of a request's wishes only a kiln daemon fulfils, before any of
// it is done.
func (c *Client) refuse(r *request.Request) error {
	what := signatures(r)
	switch {
	case c.kiln:
		return nil
	case r.Call == request.CallDryRun:
		what = "say what a build would run (--dry-run)"
	case r.Call == request.CallExplain, r.Explain:
		what = "explain builds"
	case len(r.FailOnMiss) > 0:
		what = "fail builds in which a step is not cached (--fail-on-miss)"
	case what == "":
		return nil
	}
	return fmt.Errorf("the daemon at %s is no kiln, or an older one, and cannot %s", c.url, what)
}

// knowsProxy asks whether the daemon has the proxy network: BuildKits before v0.31 let
// steps reach everything, and say nothing.
func (c *Client) knowsProxy(ctx context.Context) error {
	_, err := c.conn.Build(ctx, client.SolveOpt{}, "", func(_ context.Context, g gwclient.Client) (*gwclient.Result, error) {
		caps := g.BuildOpts().LLBCaps
		if err := caps.Supports(pb.CapExecMetaNetworkProxy); err != nil {
			return nil, fmt.Errorf("the daemon at %s has no proxy network (--proxy-network): %w", c.url, err)
		}
		return gwclient.NewResult(), nil
	}, nil)
	return err
}

// solve runs the build, or asks the frontend a question, whose answer a daemon
// hands only to those who call the frontend themselves.
func (c *Client) solve(ctx context.Context, r *request.Request, opt *client.SolveOpt, ch chan *client.SolveStatus) (*request.Result, error) {
	if r.Call == "" || request.OfEngine(r.Call) {
		resp, err := c.conn.Solve(ctx, nil, *opt, ch)
		if err != nil {
			return nil, err
		}
		return &request.Result{Metadata: resp.ExporterResponse}, nil
	}
	result := &request.Result{Metadata: map[string]string{}}
	frontend, attrs := opt.Frontend, opt.FrontendAttrs
	opt.Frontend, opt.FrontendAttrs = "", nil
	_, err := c.conn.Build(ctx, *opt, "", func(ctx context.Context, g gwclient.Client) (*gwclient.Result, error) {
		res, err := g.Solve(ctx, gwclient.SolveRequest{Frontend: frontend, FrontendOpt: attrs})
		if err != nil {
			return nil, err
		}
		for k, v := range res.Metadata {
			result.Metadata[k] = string(v)
		}
		return gwclient.NewResult(), nil
	}, ch)
	return result, err
}

// options puts the request into the terms of BuildKit's client.
func (c *Client) options(r *request.Request, in *request.Inputs) (*client.SolveOpt, error) {
	opt := &client.SolveOpt{
		Ref: r.Ref, Frontend: dockerfileFrontend, FrontendAttrs: in.Attrs, AllowedEntitlements: r.Allow, SharedKey: sharedKey(in.Folders),
		ProxyNetwork: r.ProxyNetwork,
		LocalMounts:  map[string]fsutil.FS{}, OCIStores: map[string]content.Store{},
	}
	var err error
	if opt.CacheImports, err = caches(r.CacheFrom); err != nil {
		return nil, err
	}
	if opt.CacheExports, err = caches(r.CacheTo); err != nil {
		return nil, err
	}
	if r.Frontend != "" {
		opt.Frontend = r.Frontend
	}
	for name, dir := range in.Folders {
		fs, err := fsutil.NewFS(dir)
		if err != nil {
			return nil, fmt.Errorf("the folder %s: %w", dir, err)
		}
		opt.LocalMounts[name] = fs
	}
	for name, dir := range in.Layouts {
		store, err := contentlocal.NewStore(dir)
		if err != nil {
			return nil, fmt.Errorf("the image layout %s: %w", dir, err)
		}
		opt.OCIStores[name] = store
	}
	if opt.Session, err = lend(r); err != nil {
		return nil, err
	}
	if len(in.Files) > 0 {
		opt.Session = append(opt.Session, uploads(in.Files))
	}
	for _, o := range r.Outputs {
		x, err := export(o)
		if err != nil {
			return nil, err
		}
		opt.Exports = append(opt.Exports, x)
	}
	return opt, nil
}

// lookup finds an image in a layout by its tag.
func lookup(dir, tag string) (string, error) {
	index := ociindex.NewStoreIndex(dir)
	if tag == "" {
		if d, err := index.GetSingle(); err == nil && d != nil {
			return d.Digest.String(), nil
		}
		tag = "latest"
	}
	d, err := index.Get(tag)
	switch {
	case err != nil:
		return "", fmt.Errorf("image layout %s: %w", dir, err)
	case d == nil:
		return "", fmt.Errorf("image layout %s has no image with the tag %q", dir, tag)
	}
	return d.Digest.String(), nil
}

// holdDockerfile makes a Dockerfile that is in no file one, for as long as the
// build lasts.
func holdDockerfile(r *request.Request, in *request.Inputs) (release func(), err error) {
	if len(r.DockerfileText) == 0 {
		return func() {}, nil
	}
	dir, err := os.MkdirTemp("", "kiln-dockerfile-")
	if err != nil {
		return nil, err
	}
	release = func() { os.RemoveAll(dir) }
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), r.DockerfileText, 0o600); err != nil {
		release()
		return nil, err
	}
	in.Folders["dockerfile"] = dir
	return release, nil
}

// sharedKey names the folders of a build to a daemon, so that of what it received
// it keeps what has not changed.
func sharedKey(folders map[string]string) string {
	host, _ := os.Hostname()
	dir, err := filepath.Abs(folders["context"])
	if folders["context"] == "" || err != nil {
		return ""
	}
	sum := sha256.Sum256([]byte(host + "\x00" + dir))
	return filepath.Base(dir) + ":" + hex.EncodeToString(sum[:16])
}

// nameFolders tells the daemon where the folders are.
func nameFolders(ctx context.Context, folders map[string]string) context.Context {
	for name, dir := range folders {
		if abs, err := filepath.Abs(dir); err == nil {
			ctx = metadata.AppendToOutgoingContext(ctx, request.FolderHeader, name+"="+abs)
		}
	}
	return ctx
}

// explain gives a daemon's error as people read it: with the lines that it is
// about, and marked where it means that the daemon has gone.
func (c *Client) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	switch grpcerrors.Code(err) {
	case codes.Unavailable:
		return fmt.Errorf("building at %s: %w: %w", c.url, ErrGone, err)
	case codes.Canceled: // not by us
		return fmt.Errorf("building at %s: %w: %w", c.url, ErrGone, err)
	}
	return placed(err)
}
