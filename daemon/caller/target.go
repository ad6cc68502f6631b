package caller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	sessioncontent "github.com/moby/buildkit/session/content"
	"github.com/moby/buildkit/session/filesync"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/exporter"
)

// exportStore is the content store that clients offer for an image layout.
const exportStore = "export"

// Target gives the client's end of the output with that index, of an exporter type.
func (c *Caller) Target(index int, kind string) exporter.Target {
	return &target{caller: c, index: index, layout: kind == "oci" || kind == "docker"}
}

type target struct {
	caller *Caller
	index  int
	layout bool // a folder is an image layout
}

// File opens a file at the client.
func (t *target) File(ctx context.Context, attrs map[string]string) (exporter.File, error) {
	conn, err := t.caller.get(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	w, err := filesync.CopyFileWriter(ctx, attrs, t.index, conn)
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("writing the output at the client: %w", err)
	}
	return &file{WriteCloser: w, cancel: cancel}, nil
}

type file struct {
	io.WriteCloser
	cancel context.CancelCauseFunc
	there  bool // the client has it already, and wants no more
}

// Write sends a piece. A client that knows the output by its digest says so, and then
// takes none of it.
func (f *file) Write(p []byte) (int, error) {
	if f.there {
		return len(p), nil
	}
	n, err := f.WriteCloser.Write(p)
	if f.there = isThere(err); f.there {
		return len(p), nil
	}
	return n, err
}

// isThere reports whether a client's answer says that it has the output already.
func isThere(err error) bool {
	var s interface{ GRPCStatus() *status.Status }
	return errors.As(err, &s) && s.GRPCStatus().Code() == codes.AlreadyExists
}

// Commit waits until the client has it all.
func (f *file) Commit() error {
	defer f.cancel(nil)
	if err := f.Close(); err != nil && !f.there && !isThere(err) {
		return fmt.Errorf("writing the output at the client: %w", err)
	}
	return nil
}

// errAborted is what the client's end of an aborted file sees.
var errAborted = errors.New("the output was given up")

// Abort ends the stream without its end.
func (f *file) Abort() error {
	f.cancel(errAborted)
	return nil
}

// Folder makes a folder here that Commit brings to the client.
func (t *target) Folder(ctx context.Context) (exporter.Folder, error) {
	if _, err := t.caller.get(ctx); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(t.caller.temp, "output-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &folder{target: t, ctx: ctx, path: dir}, nil
}

type folder struct {
	*target
	ctx  context.Context // of the export, which Commit and Abort end
	path string
}

func (f *folder) Path() string { return f.path }
func (f *folder) Abort() error { return os.RemoveAll(f.path) }

// Commit brings the folder to the client.
func (f *folder) Commit() (err error) {
	defer func() { err = errors.Join(err, os.RemoveAll(f.path)) }()
	if f.layout {
		return f.sendLayout()
	}
	conn, err := f.caller.get(f.ctx)
	if err != nil {
		return err
	}
	tree, err := fsutil.NewFS(f.path)
	if err != nil {
		return err
	}
	// The folder is whole, with all its platforms, which is what the option says.
	if err := filesync.CopyToCaller(f.ctx, tree, f.index, conn, nil, filesync.WithExporterMultiPlatformTransfer()); err != nil {
		return fmt.Errorf("copying the output to the client: %w", err)
	}
	return nil
}

// sendLayout puts the blobs of an image layout into the client's store. Its index
// is the client's to write.
func (f *folder) sendLayout() error {
	conn, err := f.caller.get(f.ctx)
	if err != nil {
		return err
	}
	store := sessioncontent.NewCallerStore(conn, exportStore)
	dir := filepath.Join(f.path, "blobs", "sha256")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := sendBlob(f.ctx, store, filepath.Join(dir, e.Name()), e); err != nil {
			return fmt.Errorf("writing blob %s at the client: %w", e.Name(), err)
		}
	}
	return nil
}

func sendBlob(ctx context.Context, store content.Store, path string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return err
	}
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	d := ocispecs.Descriptor{MediaType: "application/octet-stream", Digest: digest.NewDigestFromEncoded(digest.SHA256, e.Name()), Size: info.Size()}
	return content.WriteBlob(ctx, store, "kiln-"+e.Name(), in, d)
}
