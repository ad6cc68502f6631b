package fault

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// smallDisk mounts a file system of some mebibytes, for the time of the test.
func smallDisk(t *testing.T, mebibytes int) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("kiln-test", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=755", mebibytes)); err != nil {
		t.Fatalf("mounting a small tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
			syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	})
	return dir
}

// large writes a file that does not compress to nothing and that no other equals.
func large(t *testing.T, file string, mebibytes int) {
	t.Helper()
	var buf bytes.Buffer
	for i := range mebibytes << 20 / 8 {
		fmt.Fprintf(&buf, "%08x", uint32(i)*2654435761)
	}
	if err := os.WriteFile(file, buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestDiskThatFills builds with a state folder on a disk that is too small for it.
// What does not fit fails with the reason; then the folder can be pruned, and
// smaller builds work.
func TestDiskThatFills(t *testing.T) {
	const disk = 40 // MiB
	bombRef := pushWith(t, bombLayer(t, 400))
	for _, tt := range []struct {
		name, dockerfile string
		want             []string
	}{
		{"by a step", "FROM %[1]s/busybox\nRUN dd if=/dev/urandom of=/large bs=1M count=64\n",
			[]string{"No space left on device", "Dockerfile:2"}},
		{"by a copy", "FROM %[1]s/busybox\nCOPY large /large\n", []string{"no space left on device", "large"}},
		{"by a pull", "FROM %[2]s\nRUN true\n", []string{"space", "sha256:"}},
		{"by an archive", "FROM %[1]s/busybox\nADD large.tar /\n", []string{"space", "large.tar"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			state := filepath.Join(smallDisk(t, disk), "state")
			dir := dockerfile(t, tt.dockerfile+"# %[2]s\n", registry.Addr, bombRef)
			large(t, filepath.Join(dir, "large"), 64)
			if err := os.WriteFile(filepath.Join(dir, "large.tar"), bombTar(t, 64), 0o644); err != nil {
				t.Fatal(err)
			}
			small := dockerfile(t, "FROM %s/busybox\nRUN echo small > /small\n", registry.Addr)
			run(t, state, nil, "build", small).worked(t)
			for range 2 { // what the first one left does not change what the second says
				run(t, state, nil, "build", "--progress", "plain", dir).failed(t, 1, tt.want...)
				clean(t, state)
			}
			run(t, state, nil, "build", "--no-cache", small).worked(t)
			run(t, state, nil, "prune", "--all", "--force").worked(t)
			run(t, state, nil, "build", small).worked(t)
		})
	}
}

// TestDiskIsKeptFree has builds that fit on a disk one at a time and not together:
// each works, since what earlier ones left makes room.
func TestDiskIsKeptFree(t *testing.T) {
	for _, tt := range []struct{ name, dockerfile string }{
		{"steps", "FROM %s/busybox\nRUN dd if=/dev/urandom of=/large bs=1M count=30 && echo %d\n"},
		// A copy finds out how large it is when the disk is full.
		{"copies", "FROM %s/busybox\nCOPY large /large%d\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			state := filepath.Join(smallDisk(t, 110), "state")
			for n := range 5 {
				dir := dockerfile(t, tt.dockerfile, registry.Addr, n)
				data := make([]byte, 34<<20)
				rng := rand.New(rand.NewPCG(1, uint64(n)))
				for i := 0; i < len(data); i += 8 {
					binary.LittleEndian.PutUint64(data[i:], rng.Uint64())
				}
				if err := os.WriteFile(filepath.Join(dir, "large"), data, 0o644); err != nil {
					t.Fatal(err)
				}
				run(t, state, nil, "build", dir).worked(t)
				clean(t, state)
			}
		})
	}
}

// TestDiskFullAtTheEnd has the last step leave so little of the disk that what was
// done cannot be written down any more. The output is there and whole, so the build
// has worked, and says that the next one does it again.
func TestDiskFullAtTheEnd(t *testing.T) {
	state := filepath.Join(smallDisk(t, 110), "state")
	config := filepath.Join(t.TempDir(), "kiln.toml")
	if err := os.WriteFile(config, []byte("[worker.oci]\n  gc = false\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const step = "FROM %s/busybox AS fill\nRUN sleep 0.5; echo result > /result; dd if=/dev/zero of=/large bs=1M count=%d\nFROM scratch\nCOPY --from=fill /result /\n"
	build := func(mebibytes int) ended {
		out := t.TempDir()
		e := run(t, state, nil, "build", "--config", config, "-o", "type=local,dest="+out, dockerfile(t, step, registry.Addr, mebibytes))
		e.worked(t)
		if data, err := os.ReadFile(filepath.Join(out, "result")); err != nil || string(data) != "result\n" {
			t.Errorf("with %d MiB: the output holds %q, %v", mebibytes, data, err)
		}
		clean(t, state)
		return e
	}
	build(1)
	const warning = "not all that was done is kept"
	if e := build(80); !strings.Contains(e.stderr, warning) {
		t.Errorf("nothing is said of what is not kept:\n%s", e.stderr)
	}
	run(t, state, nil, "prune", "--force").worked(t)
	if e := build(2); strings.Contains(e.stderr, warning) {
		t.Errorf("with room again:\n%s", e.stderr)
	}
}

// TestOutputThatDoesNotFit writes the result to a disk that is too small: no half
// of it is left, and what was there before still is.
func TestOutputThatDoesNotFit(t *testing.T) {
	state := t.TempDir()
	dir := dockerfile(t, "FROM scratch\nCOPY large /large\n")
	large(t, filepath.Join(dir, "large"), 16)
	for _, tt := range []struct{ kind, name string }{
		{"oci", "out.tar"}, {"docker", "out.tar"}, {"tar", "out.tar"}, {"local", "folder"},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			disk := smallDisk(t, 2)
			out := filepath.Join(disk, tt.name)
			if tt.kind != "local" {
				if err := os.WriteFile(out, []byte("before"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			run(t, state, nil, "build", "-o", "type="+tt.kind+",dest="+out, dir).failed(t, 1, "no space left on device", disk)
			if tt.kind == "local" {
				return
			}
			if data, err := os.ReadFile(out); err != nil || string(data) != "before" {
				t.Errorf("the output file holds %.20q (%v), want what it held before", data, err)
			}
			if entries, _ := os.ReadDir(disk); len(entries) != 1 {
				t.Errorf("the folder of the output holds %v, want the output alone", entries)
			}
		})
	}
	clean(t, state)
	run(t, state, nil, "build", "-o", "type=oci,dest="+filepath.Join(t.TempDir(), "out.tar"), dir).worked(t)
}

// bombTar is a tarball of that many files of a mebibyte, each of one byte all over.
func bombTar(t *testing.T, files int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	data := make([]byte, 1<<20)
	for i := range files {
		for j := range data {
			data[j] = byte(i + 1) // zeros would be a hole
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("bomb/%d", i), Mode: 0o644, Size: int64(len(data))}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// bombLayer is a layer of a few hundred KiB that unpacks to so many MiB.
func bombLayer(t *testing.T, mebibytes int) v1.Layer {
	t.Helper()
	data := bombTar(t, mebibytes)
	diffID, _, err := v1.SHA256(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return rawLayer{gzipped(t, data), diffID}
}
