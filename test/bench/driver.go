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

	"github.com/google/go-containerregistry/pkg/v1/mutate"

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

// listTree writes what the layers of an OCI tarball make together to a file, a line a
// path: kind, mode, owner, content. Times are left out, for steps take place at
// different times, and so is what tools make for themselves to mount upon.
func listTree(args []string) error {
	dir, err := os.MkdirTemp("", "kiln-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	img, err := peer.Open(args[0], dir)
	if err != nil {
		return err
	}
	r := mutate.Extract(img)
	defer r.Close()
	var lines []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%q %c %04o %d:%d %s", path.Join("/", h.Name), h.Typeflag, h.Mode&0o7777, h.Uid, h.Gid, h.Linkname)
		if h.Typeflag == tar.TypeReg {
			sum := sha256.New()
			n, err := io.Copy(sum, tr)
			if err != nil {
				return err
			}
			line += fmt.Sprintf("%d %x", n, sum.Sum(nil)[:8])
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	out, err := os.Create(args[1])
	if err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	for _, line := range lines {
		fmt.Fprintln(w, line)
	}
	return errors.Join(w.Flush(), out.Close())
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
