package script

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

// cmdSecretless looks for secrets in all files of folders: as they are, in the
// encodings in which JSON and URLs carry bytes, and within tarballs and compressed
// streams.
func cmdSecretless(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 2, "[!] secretless SECRETFILE DIR…")
	var s search
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		if line = strings.TrimSpace(line); len(line) < 8 {
			ts.Fatalf("%q is too short to be looked for", line)
		}
		s.add(line)
	}
	for _, dir := range args[1:] {
		ts.Check(filepath.WalkDir(ts.MkAbs(dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			if err == nil {
				s.files++
				s.scan(path, data, 0)
			}
			return err
		}))
	}
	fmt.Fprintf(ts.Stdout(), "%d files, %d streams\n", s.files, s.streams)
	if (len(s.found) > 0) != neg {
		ts.Fatalf("found in %d places:\n%s", len(s.found), strings.Join(s.found, "\n"))
	}
}

// search is what is looked for, and what was found.
type search struct {
	words          [][]byte
	found          []string
	files, streams int
}

func (s *search) add(secret string) {
	raw := []byte(secret)
	s.words = append(s.words, raw, []byte(hex.EncodeToString(raw)))
	// Base64 of a part of a text depends on where the part begins.
	for skip := range 3 {
		part := raw[skip : skip+(len(raw)-skip)/3*3]
		s.words = append(s.words, []byte(base64.RawStdEncoding.EncodeToString(part)), []byte(base64.RawURLEncoding.EncodeToString(part)))
	}
}

// deepest is how far archives in archives are followed: a layer in a tarball in a blob.
const deepest = 6

func (s *search) scan(where string, data []byte, depth int) {
	for _, w := range s.words {
		if bytes.Contains(data, w) {
			s.found = append(s.found, where)
			return
		}
	}
	if depth == deepest {
		return
	}
	if plain, ok := decompress(data); ok {
		s.streams++
		s.scan(where+" (decompressed)", plain, depth+1)
		return
	}
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := tr.Next()
		if err != nil {
			return // the end, or no tarball
		}
		member, err := io.ReadAll(tr)
		if err != nil {
			return
		}
		s.streams++
		s.scan(where+" : "+h.Name, member, depth+1)
	}
}

// decompress gives what a gzip or zstd stream holds. One that is cut off gives what it has.
func decompress(data []byte) ([]byte, bool) {
	var r io.Reader
	var err error
	switch {
	case bytes.HasPrefix(data, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(bytes.NewReader(data))
	case bytes.HasPrefix(data, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		r, err = zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1))
	default:
		return nil, false
	}
	if err != nil {
		return nil, false
	}
	plain, err := io.ReadAll(r)
	return plain, err == nil || errors.Is(err, io.ErrUnexpectedEOF)
}
