package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
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
		b := build{context: filepath.Dir(file), dockerfile: file}
		if err := r.time("W9 "+method, b); err != nil {
			return err
		}
		if r.n > 0 {
			continue
		}
		b.oci = r.out("pull-" + method)
		if err := r.untimed(b); err != nil {
			return err
		}
		r.image("W9 "+method, b.oci)
	}
	return nil
}

// pullPlain pulls the layers with nothing around.
func pullPlain(l *lab) (map[string][]part, error) {
	out := map[string][]part{}
	for _, method := range []string{"gzip", "zstd"} {
		dir, err := l.scratch()
		if err != nil {
			return nil, err
		}
		if out["W9 "+method], err = l.parts([]string{"fetch, hash, inflate, hash, write the files: a layer to each processor", "pull", l.large(method), dir}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// writeSteps are the steps of W10. Their commands read below %[1]s, write below %[2]s,
// make %[3]d files, and put %[4]s into them: each method of compression has a layer of
// its own, since a layer that was exported by one method is given out as it is by
// BuildKit where another is asked for. A tenth of the large layer is there for the
// memory that it takes (see peaks) and has no goal.
var writeSteps = []struct {
	id, what, command string
	files             func(*lab) int
	methods           []string
	goal              float64
}{
	{"1 GB", "1 GB in 20 files", writeLarge, func(*lab) int { return 20 }, methods, 0.2},
	{"100 MB", "a tenth of it, for the memory", writeLarge, func(*lab) int { return 2 }, methods[:1], 0},
	{"many", "100,000 small files", writeMany, func(l *lab) int { return l.scaled(100_000) }, methods, 0.2},
}

var methods = []string{"gzip", "zstd", "uncompressed"}

const (
	writeLarge = `mkdir %[2]s/big && i=0 && while [ $i -lt %[3]d ]; do i=$((i+1)); { echo %[4]s $i; cat %[1]s/opt/layer0/dir*/*; } > %[2]s/big/file$i; done`
	writeMany  = `perl -e 'for $i (0..%[3]d-1) { mkdir "%[2]s/many" if !$i; mkdir "%[2]s/many/".int($i/100) if $i %% 100 == 0; open F, ">", "%[2]s/many/".int($i/100)."/f$i"; print F "file $i of many %[4]s\n" x (1 + $i %% 40); close F }'`
)

// writeRows are a row for each step, which has no goal of its own since most of
// its time is the step's, and for each export, with and without its step.
func writeRows() []row {
	var rows []row
	for _, s := range writeSteps {
		rows = append(rows, row{id: "W10 " + s.id + " step", title: "a step that writes " + s.what + ", no output"})
		for _, method := range s.methods {
			rows = append(rows,
				row{id: "W10 " + s.id + " " + method, title: s.what + ": the export alone, " + method, goal: s.goal},
				row{id: "W10 " + s.id + " step and " + method, title: s.what + ": the step and that export", goal: s.goal})
		}
	}
	return rows
}

func writeBase(l *lab) string { return l.registry.Addr + "/write:1" }

func writeSetup(l *lab) error {
	if _, err := l.driver(nil, "push-large", writeBase(l), "1", fmt.Sprint(l.scaled(50_000_000)), "gzip"); err != nil {
		return err
	}
	if _, err := os.Stat(writeSource(l)); err == nil {
		return nil
	}
	// What the commands read, for the plain loops: the layer above the Debian base.
	_, err := l.loop("pull", writeBase(l), filepath.Dir(writeSource(l)))
	return err
}

func writeSource(l *lab) string { return filepath.Join(l.dir, "src", "write-base", "1") }

func writeRound(r *run) error {
	if err := r.warm(writeBase(r.lab)); err != nil {
		return err
	}
	for _, s := range writeSteps {
		for _, method := range s.methods {
			command := fmt.Sprintf(s.command, "", "", s.files(r.lab), method)
			if err := r.writeAndExport(s.id, command, method); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeName is what files of a step of W10 and of a method are called.
func writeName(id, method string) string {
	return "write-" + strings.ReplaceAll(id, " ", "") + "-" + method
}

// writeAndExport runs a step of W10 without an output, and exports its layer then.
func (r *run) writeAndExport(id, command, method string) error {
	file, err := r.write(writeName(id, method)+"/Dockerfile", "FROM "+writeBase(r.lab)+"\nRUN "+command+"\n")
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
	keep := r.out(writeName(id, method))
	r.image("W10 "+id+" "+method, keep)
	return os.Rename(b.oci, keep)
}

// writePlain runs the same commands with no sandbox, and does to what they wrote what
// an export cannot leave out.
func writePlain(l *lab) (map[string][]part, error) {
	out := map[string][]part{}
	for _, s := range writeSteps {
		dir, err := l.scratch()
		if err != nil {
			return nil, err
		}
		command := fmt.Sprintf(s.command, writeSource(l), dir, s.files(l), "plain")
		step, err := l.parts(
			[]string{"the step's own commands, with no sandbox", "start", "/bin/sh", "-c", command},
			[]string{"hash what they wrote", "hash", dir},
		)
		if err != nil {
			return nil, err
		}
		out["W10 "+s.id+" step"] = step
		for _, method := range s.methods {
			name := method + " on all processors"
			if method == "uncompressed" {
				name = "hash pieces of a tar stream on all processors"
			}
			export, err := l.parts(
				[]string{name, "compress", dir, method},
				[]string{"copy the tarball", "file", l.outOf(writeName(s.id, method)), filepath.Join(l.dir, "out", "copy.tar")},
			)
			if err != nil {
				return nil, err
			}
			out["W10 "+s.id+" "+method] = export
			out["W10 "+s.id+" step and "+method] = slices.Concat(step, export)
		}
	}
	return out, nil
}

func (l *lab) pushed(tool, round string) string {
	return l.registry.Addr + "/pushed/" + tool + ":" + round
}

// pushRound pushes an image of ten layers, and then one that has another last layer.
// No tool finds blobs of another in the registry: their layers hold the times at which
// their steps ran.
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
		text += fmt.Sprintf("RUN find /usr/lib -type f | sort | xargs cat | head -c 10000000 > /layer%d && echo %d >> /layer%d\n", i, i, i)
	}
	b := build{context: empty, push: r.pushed(r.tool.name(), strconv.Itoa(r.n))}
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
	if r.n == 0 {
		r.image("W11", "docker://"+b.push)
	}
	return nil
}

// pushPlain runs a step and pushes its layer, of the sizes that the first tool's had.
func pushPlain(l *lab) (map[string][]part, error) {
	dir, err := l.scratch()
	if err != nil {
		return nil, err
	}
	last, sandboxes := filepath.Join(dir, "layer"), filepath.Join(dir, "sandboxes")
	for _, d := range []string{last, sandboxes} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	const command = `find %s/usr/lib -type f | sort | xargs cat | head -c 1000000 > %s/last`
	if err := exec.Command("/bin/sh", "-c", fmt.Sprintf(command, l.rootfs(), last)).Run(); err != nil {
		return nil, err
	}
	manifest, err := l.manifestFile(l.pushed(l.tools[0].name(), "0"))
	if err != nil {
		return nil, err
	}
	p, err := l.parts(
		l.start(),
		l.sandboxes(sandboxes, 1),
		[]string{"hash a file of the layer's size", "hash", last},
		[]string{"gzip it", "compress", last, "gzip"},
		[]string{"ask for the layers that are there, put one, the configuration and the manifest", "put", manifest, l.pushed(l.tools[0].name(), "plain"), "1"},
	)
	return map[string][]part{"W11": p}, err
}
