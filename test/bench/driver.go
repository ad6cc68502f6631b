package main

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kiln-build/kiln/test/internal/peer"
)

// drivers are the parts of this program that run in processes of their own.
var drivers = map[string]func(args []string) error{
	"tree":        listTree,
	"differ":      printDifferences,
	"loop":        runLoop,
	"push-large":  pushLarge,
	"engine":      engineBuilds,
	"graph":       writeGraph,
	"solve":       solveGraph,
	"unpack-base": func(args []string) error { return unpackDebian(args[0]) },
	"push-base":   func(args []string) error { return pushDebian(args[0]) },
}

func pushDebian(ref string) error {
	img, err := peer.Debian()
	if err != nil {
		return err
	}
	return peer.Push(img, ref)
}

// unpackDebian puts the base's files into a folder.
func unpackDebian(dir string) error {
	img, err := peer.Debian()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r := mutate.Extract(img)
	defer r.Close()
	tar := exec.Command("tar", "-C", dir, "--numeric-owner", "-xpf", "-")
	tar.Stdin, tar.Stderr = r, os.Stderr
	return tar.Run()
}

// listTree writes what images hold to a file, each line with its image's number where
// there are several: FILE IMAGE…, where an image is an OCI tarball or docker://REF.
func listTree(args []string) error {
	var lines []string
	for i, image := range args[1:] {
		found, err := listImage(image)
		if err != nil {
			return fmt.Errorf("%s: %w", image, err)
		}
		for _, line := range found {
			if len(args) > 2 {
				line = fmt.Sprintf("%s, image %d", line, i)
			}
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	out, err := os.Create(args[0])
	if err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	for _, line := range lines {
		fmt.Fprintln(w, line)
	}
	return errors.Join(w.Flush(), out.Close())
}

// openImage opens an image for reading, with a folder for what that takes.
func openImage(image, dir string) (v1.Image, error) {
	ref, ok := strings.CutPrefix(image, "docker://")
	if !ok {
		return peer.Open(image, dir)
	}
	n, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return nil, err
	}
	return remote.Image(n)
}

// listImage gives what the layers of an image make together, a line a path: kind,
// mode, owner, content. Times are left out, for steps take place at different times,
// and so is what tools make for themselves to mount upon.
func listImage(image string) ([]string, error) {
	dir, err := os.MkdirTemp("", "kiln-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	img, err := openImage(image, dir)
	if err != nil {
		return nil, err
	}
	r := mutate.Extract(img)
	defer r.Close()
	var lines []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return nil, err
		}
		line := fmt.Sprintf("%q %c %04o %d:%d %s", path.Join("/", h.Name), h.Typeflag, h.Mode&0o7777, h.Uid, h.Gid, h.Linkname)
		if h.Typeflag == tar.TypeReg {
			sum := sha256.New()
			n, err := io.Copy(sum, tr)
			if err != nil {
				return nil, err
			}
			line += fmt.Sprintf("%d %x", n, sum.Sum(nil)[:8])
		}
		lines = append(lines, line)
	}
}

// printDifferences prints where two lists differ.
func printDifferences(args []string) error {
	var lists [2]string
	for i := range lists {
		data, err := os.ReadFile(args[i])
		if err != nil {
			return err
		}
		lists[i] = string(data)
	}
	for _, line := range differences(lists[0], lists[1]) {
		fmt.Println(line)
	}
	return nil
}

// differences gives a few of the lines that only one of two lists has.
func differences(a, b string) []string {
	count := map[string]int{}
	for line := range strings.Lines(a) {
		count[line]++
	}
	for line := range strings.Lines(b) {
		count[line]--
	}
	var out []string
	for line, n := range count {
		if n != 0 {
			out = append(out, strings.TrimSpace(line))
		}
	}
	slices.Sort(out)
	return out[:min(len(out), 6)]
}
