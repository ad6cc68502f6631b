// Package leak looks for secrets where they must not be: in every file of folders, as
// they are, in the encodings in which JSON and URLs carry bytes, and within tarballs
// and compressed streams, wherever in a file those begin.
package leak

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"
)

// Search is what is looked for, and what was found.
type Search struct {
	// Found are the places, Files and Streams how much was looked through: a search
	// that saw nothing proves nothing.
	Found          []string
	Files, Streams int

	words [][]byte
}

// shortest is the length below which a secret would be found by chance.
const shortest = 8

// New makes a search for secrets.
func New(secrets ...string) (*Search, error) {
	s := &Search{}
	for _, secret := range secrets {
		if len(secret) < shortest {
			return nil, fmt.Errorf("%q is too short to be looked for", secret)
		}
		s.add([]byte(secret))
	}
	return s, nil
}

func (s *Search) add(raw []byte) {
	s.words = append(s.words, raw, []byte(hex.EncodeToString(raw)))
	// Base64 of a part of a text depends on where the part begins.
	for skip := range 3 {
		part := raw[skip : skip+(len(raw)-skip)/3*3]
		s.words = append(s.words, []byte(base64.RawStdEncoding.EncodeToString(part)), []byte(base64.RawURLEncoding.EncodeToString(part)))
	}
}

// Folder looks through all files below a folder.
func (s *Search) Folder(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil {
			s.Files++
			s.scan(path, data, 0)
		}
		return err
	})
}

// deepest is how far archives in archives are followed: a layer in a tarball in a blob.
const deepest = 6

func (s *Search) scan(where string, data []byte, depth int) {
	for _, w := range s.words {
		if bytes.Contains(data, w) {
			s.Found = append(s.Found, where)
			return
		}
	}
	if depth == deepest {
		return
	}
	if s.members(where, data, depth) {
		return
	}
	// A database's file holds streams in its middle.
	for _, magic := range [][]byte{{0x1f, 0x8b, 0x08}, {0x28, 0xb5, 0x2f, 0xfd}} {
		for at := 0; ; at++ {
			i := bytes.Index(data[at:], magic)
			if i < 0 {
				break
			}
			at += i
			plain := decompress(data[at:])
			if len(plain) == 0 {
				continue
			}
			s.Streams++
			s.scan(fmt.Sprintf("%s (decompressed from byte %d)", where, at), plain, depth+1)
		}
	}
}

// members scans the files of a tarball, and reports whether it is one.
func (s *Search) members(where string, data []byte, depth int) bool {
	tr := tar.NewReader(bytes.NewReader(data))
	for first := true; ; first = false {
		h, err := tr.Next()
		if err != nil {
			return !first
		}
		member, err := io.ReadAll(tr)
		if err != nil {
			return !first
		}
		s.Streams++
		s.scan(where+" : "+h.Name, member, depth+1)
	}
}

// decompress gives what a gzip or zstd stream holds, up to where it ends or breaks.
func decompress(data []byte) []byte {
	var r io.Reader
	var err error
	if data[0] == 0x1f {
		r, err = gzip.NewReader(bytes.NewReader(data))
	} else {
		var d *zstd.Decoder
		if d, err = zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true)); err == nil {
			defer d.Close()
			r = d
		}
	}
	if err != nil {
		return nil
	}
	plain, _ := io.ReadAll(r) // what came before it broke counts too
	return plain
}

// Command is a testscript command: "secretless SECRETFILE DIR…" fails where a line of
// the file is in a file below a folder; with "!" where none is.
func Command(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] secretless SECRETFILE DIR…")
	}
	var secrets []string
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		secrets = append(secrets, strings.TrimSpace(line))
	}
	s, err := New(secrets...)
	ts.Check(err)
	for _, dir := range args[1:] {
		ts.Check(s.Folder(ts.MkAbs(dir)))
	}
	fmt.Fprintf(ts.Stdout(), "%d files, %d streams\n", s.Files, s.Streams)
	if neg && len(s.Found) == 0 {
		ts.Fatalf("found nowhere")
	}
	if !neg && len(s.Found) > 0 {
		ts.Check(errors.New("found in:\n" + strings.Join(s.Found, "\n")))
	}
}
