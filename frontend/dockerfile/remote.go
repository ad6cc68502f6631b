package dockerfile

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/moby/buildkit/solver/pb"
)

// httpContextFile is the name that a downloaded context gets.
const httpContextFile = "context"

// remoteContext is what is known of a main context that came from elsewhere, for
// SOURCE_DATE_EPOCH=context.
type remoteContext struct {
	source *fsys
	// archive is the downloaded file where the context was unpacked from it.
	archive frontend.Ref
}

func (o *origin) openGit(url string, ref *dfgitutil.GitRef) {
	src := gitSource{
		ref:      ref,
		keepDir:  o.keepGitDir() || ref.KeepGitDir != nil && *ref.KeepGitDir,
		checksum: ref.Checksum,
		mtime:    ref.MTime,
		advice:   o.opts.gitAdvice,
		meta:     llb.Meta{Name: "[internal] load git source " + redacted(url)},
	}
	if src.mtime == "" && o.opts.buildArgs["SOURCE_DATE_EPOCH"] != "" {
		src.mtime = "commit"
	}
	f := src.fsys()
	o.context, o.dockerfile = f, f
	o.remote = &remoteContext{source: f}
}

// openHTTP downloads a context: an archive, or a file that is then the Dockerfile.
func (o *origin) openHTTP(ctx context.Context, url string) error {
	f := httpSource(url, httpContextFile, "", llb.Meta{Name: "[internal] load remote build context"})
	e, err := f.get()
	if err != nil {
		return err
	}
	ref, err := o.bridge.Solve(ctx, e)
	if err != nil {
		return fmt.Errorf("failed to resolve httpcontext: %w", err)
	}
	head, err := readHead(ctx, ref, httpContextFile, ArchiveHead)
	if err != nil {
		return fmt.Errorf("failed to read downloaded context: %w", err)
	}
	o.remote = &remoteContext{source: f}
	if IsArchive(head) {
		o.context = unpacked(f)
		o.remote.archive = ref
	} else {
		o.context = f
		o.filename = httpContextFile
	}
	o.dockerfile = o.context
	return nil
}

func readHead(ctx context.Context, ref frontend.Ref, name string, n int64) ([]byte, error) {
	if r, ok := ref.(frontend.RangeReader); ok {
		return r.ReadRange(ctx, name, 0, n)
	}
	data, err := readFile(ctx, ref, name)
	if err != nil {
		return nil, err
	}
	return data[:min(n, int64(len(data)))], nil
}

// magics open compressed files: bzip2, gzip, xz, zstd.
var magics = [][]byte{
	{0x42, 0x5A, 0x68},
	{0x1F, 0x8B, 0x08},
	{0xFD, 0x37, 0x7A, 0x58, 0x5A, 0x00},
	{0x28, 0xB5, 0x2F, 0xFD},
}

// ArchiveHead is how many bytes of a file IsArchive looks at: a tar may begin with a header
// of extended attributes, which lies before the first entry's.
const ArchiveHead = 64 << 10

// IsArchive reports whether a context that is one file, which begins so, is unpacked: one
// that is compressed, or a tar. Any other is the Dockerfile.
func IsArchive(head []byte) bool {
	for _, m := range magics {
		if bytes.HasPrefix(head, m) {
			return true
		}
	}
	// A zstd stream may open with a frame that is skipped, of 16 kinds.
	if len(head) >= 8 && binary.LittleEndian.Uint32(head)&^0xF == 0x184D2A50 {
		return true
	}
	_, err := tar.NewReader(bytes.NewReader(head)).Next()
	return err == nil || err == io.EOF && len(head) > 0 // with no entry in it
}

// unpacked is the content of a downloaded archive.
func unpacked(archive *fsys) *fsys {
	return copied(nil, []copyAction{{archive, &pb.FileActionCopy{
		Src:                              "/" + httpContextFile,
		Dest:                             "/",
		AttemptUnpackDockerCompatibility: true,
		Mode:                             keepMode,
		Timestamp:                        keepTime,
	}}}, llb.Meta{})
}

// subfolder is a folder of a context, as a context.
func subfolder(of *fsys, dir string) *fsys {
	return copied(nil, []copyAction{{of, &pb.FileActionCopy{
		Src:             cleanAbs(dir),
		Dest:            "/",
		DirCopyContents: true,
		Mode:            keepMode,
		Timestamp:       keepTime,
	}}}, llb.Meta{})
}
