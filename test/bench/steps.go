package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// W1, W2 and W3: thirty steps that do nearly nothing.

func steps(l *lab) int { return l.scaled(30) }

func stepsRound(r *run) error {
	var text strings.Builder
	fmt.Fprintf(&text, "FROM %s\n", r.debian)
	for i := range steps(r.lab) {
		fmt.Fprintf(&text, "RUN echo %d > /step%d\n", i, i)
	}
	file, err := r.write("steps/Dockerfile", text.String())
	if err != nil {
		return err
	}
	empty, err := r.empty()
	if err != nil {
		return err
	}
	if err := r.warm(r.debian); err != nil {
		return err
	}
	b := build{context: empty, dockerfile: file}
	if err := r.time("W1", b); err != nil {
		return err
	}
	if err := r.time("W2 alone", b); err != nil {
		return err
	}
	oci := b
	oci.oci = r.out("steps")
	if err := r.untimed(oci); err != nil {
		return err
	}
	os.Remove(oci.oci)
	r.image("W1", oci.oci)
	r.image("W3", oci.oci)
	if err := r.time("W3", oci); err != nil {
		return err
	}
	return warmSteps(r, b)
}

// warmSteps builds what is cached once more, with a daemon where the tool has one,
// and inside an engine of kiln's. The first build of each is not timed: it reads
// what later ones find in memory.
func warmSteps(r *run, b build) error {
	if r.tool == r.kiln {
		e, err := r.engine(1, 0, b.context, b.dockerfile, b.dockerfile)
		if err != nil {
			return err
		}
		r.samples["W2 inside"] = sample{Seconds: e.Builds[1]}
		if err := r.kiln.serve(r.ctx); err != nil {
			return err
		}
	}
	if err := r.untimed(b); err != nil {
		return err
	}
	return r.time("W2", b)
}

func stepsPlain(l *lab) (map[string][]part, error) {
	dir, err := l.scratch()
	if err != nil {
		return nil, err
	}
	p, err := l.parts(
		l.sandboxes(dir, steps(l)),
		l.start(),
		[]string{"copy the tarball", "file", l.outOf("steps"), filepath.Join(l.dir, "out", "copy.tar")},
	)
	if err != nil {
		return nil, err
	}
	return map[string][]part{"W1": p[:1], "W2": p[1:2], "W2 alone": p[1:2], "W3": p[2:]}, nil
}

// W4, W5 and W6: a folder of 20,000 files. W7: one of 300,000.

// files is a workload that copies a context of many files.
type files struct {
	dir, edited      string
	make             func(dir string, n int) error
	count            int
	first, one, none string // rows
}

var (
	sources = files{"files", edited, sourceTree, 20_000, "W4", "W5", "W6"}
	modules = files{"modules", editedModule, modulesTree, 300_000, "W7 first", "W7 edited", "W7 unchanged"}
)

const filesDockerfile = `FROM %[1]s AS build
WORKDIR /src
COPY . .
RUN find /src -type f | wc -l > /count
FROM %[1]s
COPY --from=build /count /count
COPY --from=build /src /app
`

func (f files) context(l *lab) string { return filepath.Join(l.dir, "src", f.dir) }

func (f files) setup(l *lab) error { return f.make(f.context(l), l.scaled(f.count)) }

func (f files) round(r *run) error {
	file, err := r.write(f.dir+"-build/Dockerfile", fmt.Sprintf(filesDockerfile, r.debian))
	if err != nil {
		return err
	}
	if err := edit(f.context(r.lab), f.edited, 2*r.n); err != nil {
		return err
	}
	if err := r.warm(r.debian); err != nil {
		return err
	}
	b := build{context: f.context(r.lab), dockerfile: file, oci: r.out(f.dir)}
	os.Remove(b.oci)
	if err := r.time(f.first, b); err != nil {
		return err
	}
	if err := edit(f.context(r.lab), f.edited, 2*r.n+1); err != nil {
		return err
	}
	b.oci = r.out(f.dir + "-edited")
	os.Remove(b.oci)
	if err := r.time(f.one, b); err != nil {
		return err
	}
	r.image(f.first, r.out(f.dir))
	r.image(f.one, b.oci)
	b.oci = ""
	return r.time(f.none, b)
}

func (f files) plain(l *lab) (map[string][]part, error) {
	dir := f.context(l)
	scratch, err := l.scratch()
	if err != nil {
		return nil, err
	}
	tarball := l.outOf(f.dir)
	p, err := l.parts(
		[]string{"copy", "copy", dir, scratch + "/copy"},
		[]string{"hash", "hash", dir},
		[]string{"link", "link", dir, scratch + "/link"},
		[]string{"gzip on all processors", "compress", dir, "gzip"},
		[]string{"copy the tarball", "file", tarball, filepath.Join(l.dir, "out", "copy.tar")},
		[]string{"stat walk", "walk", dir},
		l.start(),
	)
	if err != nil {
		return nil, err
	}
	return map[string][]part{f.first: p[:5], f.one: {p[6], p[5], p[4]}, f.none: {p[6], p[5]}}, nil
}
