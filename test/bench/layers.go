package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/kiln-build/kiln/test/internal/peer"
)

// W9: the pull of a large base. W10: steps that write much, and their export.
// W11: a push of one new layer.

// pushLarge is a driver: REF LAYERS BYTES gzip|zstd pushes the Debian base with
// layers of generated files above it, which have BYTES bytes together.
func pushLarge(args []string) error {
	layers, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	total, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	img, err := peer.Debian()
	if err != nil {
		return err
	}
	for i := range layers {
		l, err := generatedLayer(i, total/layers, args[3])
		if err != nil {
			return err
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			return err
		}
	}
	return peer.Push(img, args[0])
}

// generatedLayer has files of a hundred kilobytes, half text and half noise, which
// compress to a half about, as binaries and their data do.
func generatedLayer(n, size int, method string) (v1.Layer, error) {
	var buf bytes.Buffer
	zw, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed) // the level is valid
	var w io.WriteCloser = zw
	options := []tarball.LayerOption{tarball.WithMediaType(types.OCILayer)}
	if method == "zstd" {
		w = nopCloser{&buf}
		options = []tarball.LayerOption{tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd)}
	}
	tw := tar.NewWriter(w)
	rng := rand.New(rand.NewPCG(5, uint64(n)))
	const file = 100_000
	noise := make([]byte, file/2)
	for i := 0; i*file < size; i++ {
		if i%50 == 0 {
			if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("opt/layer%d/dir%d/", n, i/50), Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
				return nil, err
			}
		}
		data := text(rng, file/2)
		for j := range noise {
			noise[j] = byte(rng.Uint32())
		}
		name := fmt.Sprintf("opt/layer%d/dir%d/file%d", n, i/50, i)
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: file}); err != nil {
			return nil, err
		}
		if _, err := tw.Write(append(data, noise...)); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }, options...)
}

func (l *lab) large(method string) string { return l.registry.Addr + "/large:" + method }

func pullSetup(l *lab) error {
	for _, method := range []string{"gzip", "zstd"} {
		if _, err := l.driver(nil, "push-large", l.large(method), "8", fmt.Sprint(l.scaled(1_000_000_000)), method); err != nil {
			return err
		}
	}
	return nil
}

func pullRound(r *run) error {
	for _, method := range []string{"gzip", "zstd"} {
		if err := r.tool.reset(r.ctx); err != nil {
			return err
		}
		file, err := r.write("pull-"+method+"/Dockerfile", "FROM "+r.large(method)+"\nRUN true\n")
		if err != nil {
			return err
		}
		if err := r.time("W9 "+method, build{context: filepath.Dir(file), dockerfile: file}); err != nil {
			return err
		}
	}
	return nil
}

// writeDockerfiles are the steps of W10. Each method of compression has a layer of
// its own, with other contents: a layer that was exported by one method is given
// out as it is by BuildKit where another is asked for.
var writeDockerfiles = []struct{ id, text string }{
	{"1 GB", "FROM %[1]s\nRUN mkdir /big && i=0 && while [ $i -lt 20 ]; do i=$((i+1)); { echo %[3]s $i; cat /opt/layer0/dir*/*; } > /big/file$i; done\n"},
	{"many", "FROM %[1]s\nRUN perl -e 'for $i (0..%[2]d) { mkdir \"/many\" if !$i; mkdir \"/many/\".int($i/100) if $i %% 100 == 0; open F, \">\", \"/many/\".int($i/100).\"/f$i\"; print F \"file $i of many %[3]s\\n\" x (1 + $i %% 40); close F }'\n"},
}

// writeRows are a row for each step, which has no goal of its own since most of
// its time is the step's, and for each export, with and without its step.
func writeRows() []row {
	var rows []row
	for id, what := range map[string]string{"1 GB": "1 GB in 20 files", "many": "100,000 small files"} {
		rows = append(rows, row{id: "W10 " + id + " step", title: "a step that writes " + what + ", no output"})
		for _, method := range []string{"gzip", "zstd", "uncompressed"} {
			rows = append(rows,
				row{id: "W10 " + id + " " + method, title: what + ": the export alone, " + method, goal: 0.2},
				row{id: "W10 " + id + " step and " + method, title: what + ": the step and that export", goal: 0.2})
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int { return strings.Compare(a.id[:5], b.id[:5]) })
	return rows
}

func writeBase(l *lab) string { return l.registry.Addr + "/write:1" }

func writeSetup(l *lab) error {
	_, err := l.driver(nil, "push-large", writeBase(l), "1", fmt.Sprint(l.scaled(50_000_000)), "gzip")
	return err
}

func writeRound(r *run) error {
	if err := r.warm(writeBase(r.lab)); err != nil {
		return err
	}
	for _, d := range writeDockerfiles {
		for _, method := range []string{"gzip", "zstd", "uncompressed"} {
			if err := r.writeAndExport(d.id, d.text, method); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeAndExport runs a step of W10 without an output, and exports its layer then.
func (r *run) writeAndExport(id, text, method string) error {
	file, err := r.write("write-"+id[:1]+"-"+method+"/Dockerfile", fmt.Sprintf(text, writeBase(r.lab), r.scaled(100_000)-1, method))
	if err != nil {
		return err
	}
	b := build{context: filepath.Dir(file), dockerfile: file}
	if err := r.time("W10 "+id+" step", b); err != nil {
		return err
	}
	b.compression, b.oci = method, r.out("write")
	os.Remove(b.oci)
	if err := r.time("W10 "+id+" "+method, b); err != nil {
		return err
	}
	both := r.samples["W10 "+id+" step"].plus(r.samples["W10 "+id+" "+method])
	r.samples["W10 "+id+" step and "+method] = both
	keep := r.out("write-" + id[:1] + "-" + method)
	r.images["W10 "+id+" "+method] = keep
	return os.Rename(b.oci, keep)
}

// pushRound pushes an image of ten layers, and then one that has another last layer.
func pushRound(r *run) error {
	if err := r.warm(r.debian); err != nil {
		return err
	}
	empty, err := r.empty()
	if err != nil {
		return err
	}
	text := "FROM " + r.debian + "\n"
	for i := range 9 {
		text += fmt.Sprintf("RUN tar c /usr/lib | head -c 10000000 > /layer%d && echo %s %d %d >> /layer%d\n", i, r.tool.name(), r.n, i, i)
	}
	b := build{context: empty, push: r.registry.Addr + "/pushed/" + r.tool.name() + ":" + strconv.Itoa(r.n)}
	for _, last := range []string{"first", "second"} {
		if b.dockerfile, err = r.write("push-"+last+"/Dockerfile", text+"RUN head -c 1000000 /layer0 > /last; echo "+last+" > /"+last+"\n"); err != nil {
			return err
		}
		if last == "first" {
			err = r.untimed(b)
		} else {
			err = r.time("W11", b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
