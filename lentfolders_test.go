package kiln

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// Of a folder of this machine, too, metadata alone can be had.
func TestMetadataOnlyInPlace(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "d/e"), 0o755),
		os.WriteFile(filepath.Join(dir, "d/e/wanted"), []byte("text"), 0o644),
		os.WriteFile(filepath.Join(dir, "d/other"), []byte("other"), 0o644),
		os.WriteFile(filepath.Join(dir, ".fsutil-metadata"), []byte("mine"), 0o644),
		os.WriteFile(filepath.Join(dir, "secret"), []byte("s"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	e, err := Open(t.Context(), Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	f := frontendFunc(func(ctx context.Context, b frontend.Bridge) error {
		v, err := llb.Source("local://context", map[string]string{
			pb.AttrMetadataTransfer: "true", pb.AttrMetadataTransferExclude: `["**/wanted"]`, pb.AttrExcludePatterns: `["secret"]`,
		})
		if err != nil {
			return err
		}
		ref, err := b.Solve(ctx, v.Output(0))
		if err != nil {
			return err
		}
		if got, err := ref.ReadFile(ctx, "d/e/wanted"); err != nil || string(got) != "text" {
			t.Errorf("the file that is wanted holds %q, %v", got, err)
		}
		if _, err := ref.Stat(ctx, "d/other"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a file that is not wanted: %v", err)
		}
		list, err := ref.ReadFile(ctx, ".fsutil-metadata")
		for name, want := range map[string]bool{"d/other": true, "d/e/wanted": true, "secret": false, "fsutil": false} {
			if err != nil || strings.Contains(string(list), name) != want {
				t.Errorf("the list names %q: %v, %v; want %v", name, !want, err, want)
			}
		}
		return nil
	})
	if _, err := e.Build(t.Context(), Request{Context: dir, Frontend: f, Call: "outline"}); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(root, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("left in the temporary folder: %v, %v", left, err)
	}
}
