package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/kiln-build/kiln/frontend/dockerfile"
	"github.com/kiln-build/kiln/request"
)

// readContext sets what the request reads: a folder, an address, or what standard
// input gives, which is a Dockerfile or a tarball. release removes what was kept of that.
func readContext(ctx context.Context, r *request.Request, path, file string, stdin io.Reader) (release func(), err error) {
	stdin = &interruptibleReader{ctx: ctx, r: stdin}
	release = func() {}
	if path == "" {
		return release, usagef("the build context has no name; . is the current folder")
	}
	if path == "-" && file == "-" {
		return release, usagef("standard input cannot be both the context and the Dockerfile")
	}
	if file == "-" {
		if err := checkTarball(path); err != nil {
			return release, err
		}
		r.Context = path
		r.DockerfileText, err = readDockerfile(stdin)
		return release, err
	}
	r.Context, r.Dockerfile = path, file
	if path != "-" {
		return release, checkTarball(path)
	}
	in := bufio.NewReaderSize(stdin, dockerfile.ArchiveHead)
	head, err := in.Peek(dockerfile.ArchiveHead)
	if err != nil && !errors.Is(err, io.EOF) {
		return release, fmt.Errorf("reading standard input: %w", err)
	}
	dir, err := os.MkdirTemp("", "kiln-context-")
	if err != nil {
		return release, err
	}
	release = func() { os.RemoveAll(dir) }
	if !dockerfile.IsArchive(head) {
		if file != "" {
			return release, usagef("the Dockerfile is on standard input, and --file %s names another", file)
		}
		r.Context = dir // in which there is nothing
		r.DockerfileText, err = readDockerfile(in)
		return release, err
	}
	r.Context = filepath.Join(dir, "context")
	if err := save(in, r.Context); err != nil {
		return release, fmt.Errorf("keeping the context from standard input: %w", err)
	}
	return release, nil
}

// checkTarball reports that a context is a file, and no tarball: a Dockerfile, most likely.
func checkTarball(path string) error {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return nil // to be judged with the rest of the request
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, dockerfile.ArchiveHead)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if !dockerfile.IsArchive(head[:n]) {
		return usagef("the build context %s is neither a folder nor a tarball; a Dockerfile is named by --file", path)
	}
	return nil
}

// save writes what r gives to a new file.
func save(r io.Reader, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// interruptibleReader is a reader whose Read returns when ctx ends, though nobody writes
// what it reads. The read that was given up goes on until the process ends.
type interruptibleReader struct {
	ctx context.Context
	r   io.Reader
	buf [64 << 10]byte
}

func (i *interruptibleReader) Read(p []byte) (int, error) {
	type read struct {
		n   int
		err error
	}
	if i.ctx.Err() != nil {
		return 0, context.Cause(i.ctx)
	}
	done := make(chan read, 1)
	go func() {
		n, err := i.r.Read(i.buf[:min(len(p), len(i.buf))])
		done <- read{n, err}
	}()
	select {
	case r := <-done:
		return copy(p, i.buf[:r.n]), r.err
	case <-i.ctx.Done():
		return 0, context.Cause(i.ctx)
	}
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
