package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/kiln-build/kiln/request"
)

// readContext sets what the request reads: a folder, an address, or what standard
// input gives, which is a Dockerfile or a tarball. release removes what it unpacked.
func readContext(r *request.Request, path, file string, stdin io.Reader) (release func(), err error) {
	release = func() {}
	if path == "-" && file == "-" {
		return release, usagef("standard input cannot be both the context and the Dockerfile")
	}
	if file == "-" {
		r.Context = path
		r.DockerfileText, err = readDockerfile(stdin)
		return release, err
	}
	r.Context, r.Dockerfile = path, file
	if path != "-" {
		return release, nil
	}
	in := bufio.NewReaderSize(stdin, 1<<16)
	head, err := in.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return release, fmt.Errorf("reading standard input: %w", err)
	}
	dir, err := os.MkdirTemp("", "kiln-context-")
	if err != nil {
		return release, err
	}
	release = func() { os.RemoveAll(dir) }
	r.Context = dir
	if !isArchive(head) {
		r.DockerfileText, err = readDockerfile(in)
		return release, err
	}
	if err := unpackContext(in, dir); err != nil {
		return release, fmt.Errorf("unpacking the context from standard input: %w", err)
	}
	if file != "" {
		r.Dockerfile = filepath.Join(dir, filepath.Clean("/"+file))
	}
	return release, nil
}

// maxDockerfile bounds a Dockerfile that comes through a pipe.
const maxDockerfile = 16 << 20

func readDockerfile(in io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(in, maxDockerfile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading the Dockerfile from standard input: %w", err)
	case len(data) > maxDockerfile:
		return nil, fmt.Errorf("the Dockerfile on standard input is larger than %d MiB", maxDockerfile>>20)
	case len(strings.TrimSpace(string(data))) == 0:
		return nil, errors.New("the Dockerfile on standard input is empty")
	}
	return data, nil
}
