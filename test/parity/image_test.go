//go:build parity

package parity

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// image is one platform's image of a tarball, read for comparison.
type image struct {
	platform string
	manifest v1.Manifest
	config   map[string]any
	tree     map[string]*entry
	digest   string
	// bills are the predicates of what is said of the image beside it.
	bills []string
}

// entry is what a layer says of one path.
type entry struct {
	path, kind, link string
	mode             int64
	uid, gid         int
	major, minor     int64
	xattrs           map[string]string
	size             int64
	content          string
	mtime            time.Time
}

// tarball is an OCI layout in a tar file; blobs are found by offset.
type tarball struct {
	file  *os.File
	blobs map[string]*io.SectionReader
	index *io.SectionReader
}

func openTarball(name string) (*tarball, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	t := &tarball{file: f, blobs: map[string]*io.SectionReader{}}
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			f.Close()
			return nil, err
		}
		part := io.NewSectionReader(f, at, h.Size)
		if h.Name == "index.json" {
			t.index = part
		} else if rest, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok {
			t.blobs["sha256:"+rest] = part
		}
	}
	if t.index == nil {
		f.Close()
		return nil, fmt.Errorf("%s has no index.json", name)
	}
	return t, nil
}

// readJSON decodes a blob, whose bytes have to be those of its digest.
func (t *tarball) readJSON(digest string, into any) error {
	blob := t.blobs[digest]
	if blob == nil {
		return fmt.Errorf("blob %s is not in the tarball", digest)
	}
	data, err := io.ReadAll(io.NewSectionReader(blob, 0, blob.Size()))
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(data); "sha256:"+hex.EncodeToString(sum[:]) != digest {
		return fmt.Errorf("blob %s holds other bytes", digest)
	}
	return json.Unmarshal(data, into)
}

// readImages gives the images of a tarball by platform, in the index's order.
func readImages(name string) ([]*image, error) {
	t, err := openTarball(name)
	if err != nil {
		return nil, err
	}
	defer t.file.Close()
	var index v1.Index
	if err := json.NewDecoder(t.index).Decode(&index); err != nil {
		return nil, err
	}
	return t.images(index)
}

func (t *tarball) images(index v1.Index) ([]*image, error) {
	var images []*image
	for _, d := range index.Manifests {
		if strings.Contains(d.MediaType, "index") || strings.Contains(d.MediaType, "list") {
			var inner v1.Index
			if err := t.readJSON(d.Digest.String(), &inner); err != nil {
				return nil, err
			}
			more, err := t.images(inner)
			if err != nil {
				return nil, err
			}
			images = append(images, more...)
			continue
		}
		if d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
			if err := t.attest(images, d); err != nil {
				return nil, fmt.Errorf("attestation %s: %w", d.Digest, err)
			}
			continue
		}
		img, err := t.image(d)
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	return images, nil
}

// attest gives an image what a manifest says of it.
func (t *tarball) attest(images []*image, d v1.Descriptor) error {
	var manifest v1.Manifest
	if err := t.readJSON(d.Digest.String(), &manifest); err != nil {
		return err
	}
	of := d.Annotations["vnd.docker.reference.digest"]
	at := slices.IndexFunc(images, func(i *image) bool { return i.digest == of })
	if at < 0 {
		return fmt.Errorf("it is about %q, which is not in front of it", of)
	}
	for _, l := range manifest.Layers {
		var statement struct {
			PredicateType string `json:"predicateType"`
			Predicate     any    `json:"predicate"`
		}
		if err := t.readJSON(l.Digest.String(), &statement); err != nil {
			return err
		}
		text, err := json.Marshal(statement)
		if err != nil {
			return err
		}
		images[at].bills = append(images[at].bills, string(text))
	}
	slices.Sort(images[at].bills)
	return nil
}

func (t *tarball) image(d v1.Descriptor) (*image, error) {
	img := &image{tree: map[string]*entry{}, digest: d.Digest.String()}
	if err := t.readJSON(d.Digest.String(), &img.manifest); err != nil {
		return nil, err
	}
	if err := t.readJSON(img.manifest.Config.Digest.String(), &img.config); err != nil {
		return nil, err
	}
	img.platform = fmt.Sprint(img.config["os"], "/", img.config["architecture"])
	if v, ok := img.config["variant"]; ok {
		img.platform += fmt.Sprint("/", v)
	}
	for _, l := range img.manifest.Layers {
		entries, err := t.layer(l)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
		if err := apply(img.tree, entries); err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
	}
	return img, nil
}

// layers remembers what was read, by digest: most layers are the base's.
var layers sync.Map

func (t *tarball) layer(d v1.Descriptor) ([]entry, error) {
	if known, ok := layers.Load(d.Digest); ok {
		return known.([]entry), nil
	}
	blob := t.blobs[d.Digest.String()]
	if blob == nil {
		return nil, errors.New("it is not in the tarball")
	}
	r, err := decompress(io.NewSectionReader(blob, 0, blob.Size()))
	if err != nil {
		return nil, err
	}
	entries, err := readEntries(r)
	if err != nil {
		return nil, err
	}
	layers.Store(d.Digest, entries)
	return entries, nil
}

func decompress(r io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(r, 1<<16)
	head, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case strings.HasPrefix(string(head), "\x1f\x8b"):
		return gzip.NewReader(b)
	case string(head) == "\x28\xb5\x2f\xfd":
		return zstd.NewReader(b)
	}
	return b, nil
}

var kinds = map[byte]string{
	tar.TypeReg: "file", tar.TypeDir: "directory", tar.TypeSymlink: "symlink", tar.TypeLink: "hard link",
	tar.TypeFifo: "fifo", tar.TypeChar: "character device", tar.TypeBlock: "block device",
}

func readEntries(r io.Reader) ([]entry, error) {
	var entries []entry
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
		e := entry{path: path.Clean("/" + h.Name), kind: kinds[h.Typeflag], link: h.Linkname, mode: h.Mode & 0o7777, uid: h.Uid, gid: h.Gid,
			major: h.Devmajor, minor: h.Devminor, mtime: h.ModTime, xattrs: map[string]string{}}
		if e.kind == "" {
			return nil, fmt.Errorf("%s is of kind %q", h.Name, h.Typeflag)
		}
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				e.xattrs[name] = v
			}
		}
		if e.kind == "file" {
			sum := sha256.New()
			if e.size, err = io.Copy(sum, tr); err != nil {
				return nil, err
			}
			e.content = hex.EncodeToString(sum.Sum(nil))
		}
		entries = append(entries, e)
	}
}

// apply puts a layer over a tree. Names of one inode share one *entry.
func apply(tree map[string]*entry, layer []entry) error {
	for _, e := range layer {
		dir, name := path.Split(e.path)
		dir = path.Clean(dir)
		switch {
		case name == ".wh..wh..opq":
			removeBelow(tree, dir)
		case strings.HasPrefix(name, ".wh."):
			gone := path.Join(dir, strings.TrimPrefix(name, ".wh."))
			delete(tree, gone)
			removeBelow(tree, gone)
		}
	}
	for _, e := range layer {
		if strings.HasPrefix(path.Base(e.path), ".wh.") {
			continue
		}
		for dir := path.Dir(e.path); tree[dir] == nil; dir = path.Dir(dir) {
			tree[dir] = &entry{path: dir, kind: "directory", mode: 0o755}
		}
		if e.kind != "directory" {
			removeBelow(tree, e.path)
		}
		if e.kind == "hard link" {
			target := tree[path.Clean("/"+e.link)]
			if target == nil {
				return fmt.Errorf("%s is a hard link to %s, which is not there", e.path, e.link)
			}
			tree[e.path] = target
			continue
		}
		tree[e.path] = &e
	}
	return nil
}

func removeBelow(tree map[string]*entry, dir string) {
	prefix := strings.TrimSuffix(dir, "/") + "/"
	for p := range tree {
		if p != "/" && strings.HasPrefix(p, prefix) {
			delete(tree, p)
		}
	}
}
