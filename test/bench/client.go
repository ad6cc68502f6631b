package main

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// The plain loops that speak to the registry: the requests that a pull and a push
// cannot do without, and nothing kept between them but connections.

// endpoint gives the address of a repository's part of the distribution API, and the
// tag, of ADDR/REPOSITORY:TAG.
func endpoint(ref string) (base, tag string) {
	addr, rest, _ := strings.Cut(ref, "/")
	repository, tag, _ := strings.Cut(rest, ":")
	return "http://" + addr + "/v2/" + repository, tag
}

// request makes a request and gives its answer, whose status has to be want.
func request(method, address string, body []byte, kind string, want int) (*http.Response, error) {
	req, err := http.NewRequest(method, address, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if method == http.MethodGet {
		req.Header.Set("Accept", kind)
	} else {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != want {
		resp.Body.Close()
		return nil, fmt.Errorf("%s %s: %s", method, address, resp.Status)
	}
	return resp, nil
}

// ask makes a request whose answer's body does not matter.
func ask(method, address string, body []byte, kind string, want int) (http.Header, error) {
	resp, err := request(method, address, body, kind, want)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.Header, err
}

// read gives what is at an address.
func read(address, kind string) ([]byte, error) {
	resp, err := request(http.MethodGet, address, nil, kind, http.StatusOK)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func readManifest(ref string) (m ocispec.Manifest, err error) {
	base, tag := endpoint(ref)
	data, err := read(base+"/manifests/"+tag, ocispec.MediaTypeImageManifest)
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(data, &m)
}

// readImages reads manifests and configurations: REF….
func readImages(refs []string) error {
	for _, ref := range refs {
		m, err := readManifest(ref)
		if err != nil {
			return err
		}
		base, _ := endpoint(ref)
		if _, err := read(base+"/blobs/"+string(m.Config.Digest), "*/*"); err != nil {
			return err
		}
	}
	return nil
}

// pullImage fetches the layers of an image, as many at once as there are processors,
// and writes the files of each to a folder of its own.
func pullImage(ref, dir string) error {
	m, err := readManifest(ref)
	if err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for i, layer := range m.Layers {
		if !strings.Contains(layer.MediaType, "tar") { // of a cache, which holds more than layers
			continue
		}
		group.Go(func() error {
			if err := pullLayer(ref, layer, filepath.Join(dir, strconv.Itoa(i))); err != nil {
				return fmt.Errorf("layer %s of %s: %w", layer.Digest, ref, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// pullLayer hashes a layer as it comes and as it is when it is inflated, since an
// image names it by both.
func pullLayer(ref string, layer ocispec.Descriptor, dir string) error {
	base, _ := endpoint(ref)
	resp, err := request(http.MethodGet, base+"/blobs/"+string(layer.Digest), nil, "*/*", http.StatusOK)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	blob, inflated := sha256.New(), sha256.New()
	body := io.TeeReader(resp.Body, blob)
	var r io.Reader
	switch {
	case strings.HasSuffix(layer.MediaType, "gzip"):
		r, err = gzip.NewReader(body)
	case strings.HasSuffix(layer.MediaType, "zstd"):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(body, zstd.WithDecoderConcurrency(1)); err == nil {
			defer d.Close()
			r = d
		}
	default:
		r = body
	}
	if err != nil {
		return err
	}
	r = io.TeeReader(r, inflated)
	if err := writeFiles(r, dir); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, body); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, blob); got != layer.Digest {
		return fmt.Errorf("what came has the digest %s", got)
	}
	return nil
}

// writeFiles writes the folders, files and links of a tar stream.
func writeFiles(r io.Reader, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	within := func(name string) string { return filepath.Join(dir, path.Clean("/"+name)) }
	buf := make([]byte, 1<<20)
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := within(h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(name, 0o755)
		case tar.TypeReg:
			err = writeFile(name, tr, buf)
		case tar.TypeSymlink:
			err = os.Symlink(h.Linkname, name)
		case tar.TypeLink:
			err = os.Link(within(h.Linkname), name)
		}
		if err != nil {
			return err
		}
	}
}

func writeFile(name string, r io.Reader, buf []byte) error {
	f, err := os.Create(name)
	if os.IsNotExist(err) { // a layer need not hold the folders above its files
		if err = os.MkdirAll(filepath.Dir(name), 0o755); err == nil {
			f, err = os.Create(name)
		}
	}
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, r, buf); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// putImage pushes an image that is as another is but for its last layers: FILE, which
// holds the other's manifest, REF and the number of layers. It asks for the layers
// that are there, puts as many new bytes as the last ones have, and a configuration,
// and the manifest, one request after the other. With no new layer all is there but
// the manifest under that tag.
func putImage(args []string) error {
	data, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return err
	}
	fresh, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	base, tag := endpoint(args[1])
	blobs := make([]*ocispec.Descriptor, 0, len(m.Layers)+1)
	for i := range m.Layers {
		blobs = append(blobs, &m.Layers[i])
	}
	blobs = append(blobs, &m.Config)
	there := len(blobs)
	if fresh > 0 {
		there = len(m.Layers) - fresh
	}
	for i, d := range blobs {
		if i < there {
			_, err = ask(http.MethodHead, base+"/blobs/"+string(d.Digest), nil, "", http.StatusOK)
		} else {
			err = putBlob(base, d)
		}
		if err != nil {
			return err
		}
	}
	if data, err = json.Marshal(m); err != nil {
		return err
	}
	_, err = ask(http.MethodPut, base+"/manifests/"+tag, data, ocispec.MediaTypeImageManifest, http.StatusCreated)
	return err
}

// putBlob uploads as many bytes as a descriptor says, which nobody has, and describes
// them in it.
func putBlob(base string, d *ocispec.Descriptor) error {
	data := make([]byte, d.Size)
	rand.Read(data) // it never fails
	d.Digest = digest.FromBytes(data)
	if _, err := ask(http.MethodHead, base+"/blobs/"+string(d.Digest), nil, "", http.StatusNotFound); err != nil {
		return err
	}
	uploads, err := url.Parse(base + "/blobs/uploads/")
	if err != nil {
		return err
	}
	header, err := ask(http.MethodPost, uploads.String(), nil, "", http.StatusAccepted)
	if err != nil {
		return err
	}
	to, err := uploads.Parse(header.Get("Location"))
	if err != nil {
		return err
	}
	query := to.Query()
	query.Set("digest", string(d.Digest))
	to.RawQuery = query.Encode()
	_, err = ask(http.MethodPut, to.String(), data, "application/octet-stream", http.StatusCreated)
	return err
}

// manifestFile keeps the manifest of an image in a file for putImage, and gives the
// file's path.
func (l *lab) manifestFile(ref string) (string, error) {
	m, err := readManifest(ref)
	if err != nil {
		return "", err
	}
	data, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	return l.write("manifest.json", string(data))
}
