package main

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// The plain loops: what a workload's bytes cost without a builder. Each is one
// goroutine's work, but for those that compress and pull, which use every processor,
// and for steps that run beside each other.

// walk calls stat on everything below dir.
func walk(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			_, err = d.Info()
		}
		return err
	})
}

// eachFile calls fn for the regular files below dir, and mkdir for the folders
// above them; both get paths relative to dir.
func eachFile(dir string, mkdir, fn func(rel string) error) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && mkdir != nil:
			return mkdir(rel)
		case d.Type().IsRegular():
			return fn(rel)
		}
		return nil
	})
}

// copyTree copies a folder's files, a read and a write for each.
func copyTree(from, to string) error {
	buf := make([]byte, 1<<20)
	return eachFile(from, func(rel string) error { return os.MkdirAll(filepath.Join(to, rel), 0o755) }, func(rel string) error {
		return copyFile(filepath.Join(from, rel), filepath.Join(to, rel), buf)
	})
}

func copyFile(from, to string, buf []byte) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	// Through a buffer: a file system that shares extents would copy nothing.
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, buf)
	return errors.Join(err, out.Close())
}

// linkTree links a folder's files into another.
func linkTree(from, to string) error {
	return eachFile(from, func(rel string) error { return os.MkdirAll(filepath.Join(to, rel), 0o755) }, func(rel string) error {
		return os.Link(filepath.Join(from, rel), filepath.Join(to, rel))
	})
}

// hashTree hashes a folder's files, one after the other.
func hashTree(dir string) error {
	h := sha256.New()
	buf := make([]byte, 1<<20)
	return eachFile(dir, nil, func(rel string) error {
		f, err := os.Open(filepath.Join(dir, rel))
		if err != nil {
			return err
		}
		defer f.Close()
		h.Reset()
		_, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf)
		return err
	})
}

// compressTree makes a tar stream of a folder's files and compresses it, in
// pieces of a megabyte on every processor, as "gzip", "zstd" or "uncompressed".
func compressTree(dir, method string) error {
	pieces := make(chan []byte, 2*runtime.NumCPU())
	var group sync.WaitGroup
	for range runtime.NumCPU() {
		group.Go(func() {
			var w io.WriteCloser = gzip.NewWriter(io.Discard)
			switch method {
			case "zstd":
				w, _ = zstd.NewWriter(io.Discard, zstd.WithEncoderConcurrency(1)) // the options are valid
			case "uncompressed":
				w = nopCloser{sha256.New()}
			}
			for p := range pieces {
				w.Write(p) // neither io.Discard nor a hash fails
			}
			w.Close()
		})
	}
	cut := &cutter{to: pieces}
	tw := tar.NewWriter(cut)
	err := eachFile(dir, nil, func(rel string) error {
		f, err := os.Open(filepath.Join(dir, rel))
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Name: rel, Mode: 0o644, Size: st.Size(), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err = io.Copy(tw, f)
		return err
	})
	err = errors.Join(err, tw.Close())
	cut.flush()
	close(pieces)
	group.Wait()
	return err
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// cutter cuts a stream into pieces.
type cutter struct {
	to  chan<- []byte
	buf []byte
}

func (c *cutter) Write(p []byte) (int, error) {
	if c.buf == nil {
		c.buf = make([]byte, 0, 1<<20+1<<16)
	}
	c.buf = append(c.buf, p...)
	if len(c.buf) >= 1<<20 {
		c.flush()
	}
	return len(p), nil
}

func (c *cutter) flush() {
	c.to <- c.buf
	c.buf = nil
}

// loops are the plain loops that run as drivers: bench loop NAME ARG… prints the
// seconds.
var loops = map[string]func(args []string) error{
	"walk":     func(a []string) error { return walk(a[0]) },
	"copy":     func(a []string) error { return copyTree(a[0], a[1]) },
	"link":     func(a []string) error { return linkTree(a[0], a[1]) },
	"hash":     func(a []string) error { return hashTree(a[0]) },
	"compress": func(a []string) error { return compressTree(a[0], a[1]) },
	"file":     func(a []string) error { return copyFile(a[0], a[1], make([]byte, 1<<20)) },
	"steps": func(a []string) error {
		n, err := strconv.Atoi(a[2])
		if err != nil {
			return err
		}
		return runSteps(a[0], a[1], n)
	},
	"stages":   func(a []string) error { return runStages(a[0], a[1]) },
	"start":    func(a []string) error { return exec.Command(a[0], a[1:]...).Run() },
	"pull":     func(a []string) error { return pullImage(a[0], a[1]) },
	"read":     readImages,
	"put":      putImage,
	"vertices": func(a []string) error { return makeVertices(a[0], a[1]) },
	"digests":  func(a []string) error { return hashVertices(a[0]) },
}

func runLoop(args []string) error {
	loop, ok := loops[args[0]]
	if !ok {
		return errors.New("no loop " + args[0])
	}
	seconds, err := duration(func() error { return loop(args[1:]) })
	fmt.Println(seconds)
	return err
}

// scratch makes a folder for what plain loops write; lab.sweep removes it (see states).
func (l *lab) scratch() (string, error) { return os.MkdirTemp(l.dir, "state-plain-") }

// loop runs a plain loop in a process of its own.
func (l *lab) loop(name string, args ...string) (float64, error) {
	settle()
	out, err := l.driver(nil, append([]string{"loop", name}, args...)...)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(out), 64)
}

// parts runs plain loops one after the other, each {label, loop, argument…}.
func (l *lab) parts(specs ...[]string) ([]part, error) {
	var out []part
	for _, s := range specs {
		seconds, err := l.loop(s[1], s[2:]...)
		if err != nil {
			return nil, err
		}
		out = append(out, part{s[0], seconds})
	}
	return out, nil
}
