package fault

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kiln-build/kiln/test/internal/peer"
)

// layerOf makes a layer of a tarball, which need not be a good one.
func layerOf(t *testing.T, data []byte) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// tarOf writes headers into a tarball; regular files hold "evil".
func tarOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		const content = "evil"
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.ModTime = time.Unix(1, 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// pushWith pushes busybox with further layers on top, and gives its reference.
func pushWith(t *testing.T, layers ...v1.Layer) (ref string) {
	t.Helper()
	img, err := peer.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, layers...); err != nil {
		t.Fatal(err)
	}
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, strings.ToLower(t.Name()))
	ref = registry.Addr + "/" + name + ":1"
	if err := peer.Push(img, ref); err != nil {
		t.Fatal(err)
	}
	return ref
}

// TestLayerThatLeavesItsRoot builds on images whose layers try to write, link to or
// delete what lies outside of them. Whether such a layer is refused or kept inside
// its root, the host's files stay as they are.
func TestLayerThatLeavesItsRoot(t *testing.T) {
	up := strings.Repeat("../", 40)
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
	symlink := func(name, target string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
	}
	hardlink := func(name, target string) tar.Header {
		return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}
	}
	for _, tt := range []struct {
		name    string
		refused string // how, as a pattern; empty where the layer is taken
		layers  func(victim string) [][]tar.Header
	}{
		{"a name with dots", "", func(v string) [][]tar.Header {
			return [][]tar.Header{{file(up + v + "/new"), file(up + v + "/kept")}}
		}},
		{"an absolute name", "", func(v string) [][]tar.Header {
			return [][]tar.Header{{file(v + "/new"), file(v + "/kept")}}
		}},
		{"a name with dots in the middle", "", func(v string) [][]tar.Header {
			return [][]tar.Header{{file("usr/" + up + v + "/kept")}}
		}},
		{"through an absolute link", "", func(v string) [][]tar.Header {
			return [][]tar.Header{{symlink("way", v), file("way/new"), file("way/kept")}}
		}},
		{"through a relative link", "", func(v string) [][]tar.Header {
			return [][]tar.Header{{symlink("way", up+v), file("way/new"), file("way/kept")}}
		}},
		{"through links to links", "", func(v string) [][]tar.Header {
			return [][]tar.Header{{symlink("a", "b"), symlink("b", "c/d"), symlink("c", "."), symlink("d", up+v), file("a/new"), file("a/kept")}}
		}},
		{"through a link of a layer below", "", func(v string) [][]tar.Header {
			return [][]tar.Header{{symlink("way", v)}, {file("way/new"), file("way/kept")}}
		}},
		{"through a link to oneself", "too many levels of symbolic links", func(v string) [][]tar.Header {
			return [][]tar.Header{{symlink("loop", "loop"), file("loop/new")}}
		}},
		{"a hard link to a file outside", "which is not in the same archive", func(v string) [][]tar.Header {
			return [][]tar.Header{{hardlink("stolen", up+v+"/kept"), file("stolen")}}
		}},
		{"a hard link to a symbolic link", "", func(v string) [][]tar.Header {
			return [][]tar.Header{{symlink("way", v+"/kept"), hardlink("same", "way"), file("same")}}
		}},
		{"a file over a link", "", func(v string) [][]tar.Header {
			return [][]tar.Header{{symlink("way", v+"/kept"), file("way")}}
		}},
		{"a deletion outside", "", func(v string) [][]tar.Header {
			return [][]tar.Header{{file(up + v + "/.wh.kept")}}
		}},
		{"a deletion through a link", "", func(v string) [][]tar.Header {
			return [][]tar.Header{{symlink("way", v)}, {file("way/.wh.kept"), file("way/.wh..wh..opq")}}
		}},
		{"a deletion of dots", "not the name of a whiteout", func(string) [][]tar.Header {
			return [][]tar.Header{{file("usr/.wh..."), file("usr/.wh..")}}
		}},
		{"the root as a file", "", func(string) [][]tar.Header {
			return [][]tar.Header{{file(".")}}
		}},
		{"the root as a link", "", func(v string) [][]tar.Header {
			return [][]tar.Header{{symlink(".", v), file("new")}}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			victim := t.TempDir()
			kept := filepath.Join(victim, "kept")
			if err := os.WriteFile(kept, []byte("as it was"), 0o640); err != nil {
				t.Fatal(err)
			}
			var layers []v1.Layer
			for _, headers := range tt.layers(victim) {
				layers = append(layers, layerOf(t, tarOf(t, headers...)))
			}
			state := t.TempDir()
			ref := pushWith(t, layers...)
			// A step and a copy look at all of it; steps have the host's files out of reach.
			dir := dockerfile(t, "FROM %[1]s\nRUN find / -xdev > /seen; cat /stolen /same /way 2>/dev/null; true\nFROM scratch\nCOPY --from=0 / /\n", ref)
			got := run(t, state, nil, "build", "--progress", "plain", "-o", "type=oci,dest="+filepath.Join(t.TempDir(), "out.tar"), dir)
			if tt.refused == "" {
				got.worked(t)
			} else {
				got.failed(t, 1, tt.refused, "sha256:")
			}
			if strings.Contains(got.stderr, "as it was") {
				t.Errorf("the step read a file of the host:\n%s", got.stderr)
			}
			if data, err := os.ReadFile(kept); err != nil || string(data) != "as it was" {
				t.Errorf("the file outside holds %q (%v), want it as it was", data, err)
			}
			if entries, err := os.ReadDir(victim); err != nil || len(entries) != 1 {
				t.Errorf("the folder outside holds %v (%v), want one file", entries, err)
			}
			clean(t, state)
			run(t, state, nil, "build", dockerfile(t, "FROM %s/busybox\nRUN true\n", registry.Addr)).worked(t)
		})
	}
}

// rawLayer is a layer of bytes that no archive stands behind.
type rawLayer struct {
	data   []byte
	diffID v1.Hash
}

func (l rawLayer) Digest() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l.data))
	return h, err
}
func (l rawLayer) DiffID() (v1.Hash, error) { return l.diffID, nil }
func (l rawLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.data)), nil
}
func (l rawLayer) Uncompressed() (io.ReadCloser, error) { return nil, errors.ErrUnsupported }
func (l rawLayer) Size() (int64, error)                 { return int64(len(l.data)), nil }
func (l rawLayer) MediaType() (types.MediaType, error)  { return types.OCILayer, nil }

// TestLayerThatIsBroken builds on images whose layers are not what they say.
func TestLayerThatIsBroken(t *testing.T) {
	good := tarOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "file"}, tar.Header{Typeflag: tar.TypeReg, Name: "other"})
	diffID, _, err := v1.SHA256(bytes.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	zipped := gzipped(t, good)
	huge := tarOf(t, tar.Header{Typeflag: tar.TypeDir, Name: "dir/"})
	huge = append(hugeHeader(t), huge...)
	for _, tt := range []struct {
		name string
		data []byte
		want string
	}{
		{"no archive at all", []byte("this is no layer"), "gzip|archive|tar"},
		{"an empty blob", nil, "EOF|empty|archive|tar"},
		{"a compressed stream that ends early", zipped[:len(zipped)-40], "EOF|ends"},
		{"a compressed stream that was changed", append(append(append([]byte{}, zipped[:20]...), 0, 0, 0, 0, 0, 0), zipped[26:]...), "."},
		{"an archive that ends early", gzipped(t, good[:700]), "EOF|ends"},
		{"another archive", gzipped(t, tarOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "another"})), "diff id|digest"},
		{"a file of exabytes", gzipped(t, huge), "space|larger|bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			state := t.TempDir()
			ref := pushWith(t, rawLayer{tt.data, diffID})
			got := run(t, state, nil, "build", "--progress", "plain", dockerfile(t, "FROM %s\nRUN true\n", ref))
			got.failed(t, 1, "sha256:", tt.want, `Dockerfile:[12]\b`)
			clean(t, state)
			run(t, state, nil, "build", dockerfile(t, "FROM %s/busybox\nRUN true\n", registry.Addr)).worked(t)
		})
	}
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// hugeHeader is the header of a file that is larger than any disk, without the file.
func hugeHeader(t *testing.T) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "huge", Mode: 0o644, Size: 1 << 62, Format: tar.FormatPAX}); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes() // not closed: the content is missing
}
