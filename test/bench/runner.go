package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// W16: a runner of a CI service, which starts empty, with what an earlier one left
// in a registry: what the build step by step made, and the image.

// runnerDockerfile has what such builds have: dependencies that take a while to
// fetch and are large, a compilation (whose own time is little here: it is that of
// the step, not of the builder), and a small image of its result.
const runnerDockerfile = `FROM %[1]s AS dependencies
COPY modules.txt /modules.txt
RUN mkdir /modules && for i in $(seq 1 20); do { cat /usr/bin/perl; cat /modules.txt; echo $i; } > /modules/$i; done; sleep 1
FROM dependencies AS build
COPY src /src
RUN %[2]s
FROM %[1]s AS tools
RUN for i in $(seq 1 10); do { cat /usr/bin/openssl /usr/bin/perl; echo $i; } > /usr/local/bin/tool$i; done
FROM tools
COPY --from=build /program /usr/local/bin/program
RUN %[3]s
ENTRYPOINT ["/usr/local/bin/program"]
`

// What the edit has run again, with what it reads below %[1]s, %[2]s and %[3]s, and
// what it writes below %[4]s.
const (
	runnerCompile = "cat %[1]s/modules/* | md5sum > %[4]s/sum && { cat %[2]s/usr/bin/perl %[3]s/src/* %[4]s/sum; } > %[4]s/program"
	runnerSum     = "md5sum %[1]s/program > %[2]s/program.md5"
)

// runnerRound fills the cache, and then builds on empty runners: what was built
// before, and then with one line of its source changed.
func runnerRound(r *run) error {
	c, err := countBefore(r.registry.Addr)
	if err != nil {
		return err
	}
	defer c.close()
	file, err := r.write("runner/Dockerfile", fmt.Sprintf(runnerDockerfile, c.addr+"/debian:bookworm",
		fmt.Sprintf(runnerCompile, "", "", "", ""), fmt.Sprintf(runnerSum, "/usr/local/bin", "")))
	if err != nil {
		return err
	}
	name := r.tool.name() + "-" + strconv.Itoa(r.n)
	cache := "type=registry,ref=" + c.addr + "/cache/" + name + ":main"
	b := build{
		context: filepath.Dir(file), dockerfile: file, push: c.addr + "/runner/" + name + ":latest",
		cacheFrom: cache, cacheTo: cache + ",mode=max,image-manifest=true,oci-mediatypes=true",
	}
	if err := r.runnerSource("as it was\n"); err != nil {
		return err
	}
	if err := r.untimed(b); err != nil {
		return err
	}
	for _, row := range []struct{ id, line string }{{"W16 same", "as it was\n"}, {"W16 edited", "changed\n"}} {
		if err := r.tool.reset(r.ctx); err != nil {
			return err
		}
		if err := r.runnerSource(row.line); err != nil {
			return err
		}
		c.reset()
		if err := r.time(row.id, b); err != nil {
			return err
		}
		s := r.samples[row.id]
		s.Moved, s.Requests = c.moved.Load(), c.requests.Load()
		r.samples[row.id] = s
		if r.n == 0 {
			// To be compared.
			oci := b
			oci.push, oci.cacheTo, oci.oci = "", "", r.out(row.id[4:])
			if err := r.untimed(oci); err != nil {
				return err
			}
			r.image(row.id, oci.oci)
		}
	}
	return nil
}

// runnerSource writes the context, with a line of one file.
func (l *lab) runnerSource(line string) error {
	for i := range 50 {
		text := fmt.Sprintf("line %d of a source file\n", i)
		if i == 7 {
			text += line
		}
		if _, err := l.write(fmt.Sprintf("runner/src/file%d", i), text); err != nil {
			return err
		}
	}
	_, err := l.write("runner/modules.txt", "modules\n")
	return err
}

// runnerPlain fetches what the edit needs, from what the first tool left in the
// registry in its first round, runs the commands again and pushes their two layers.
func runnerPlain(l *lab) (map[string][]part, error) {
	name := l.tools[0].name() + "-0"
	cache := l.registry.Addr + "/cache/" + name + ":main"
	manifest, err := l.manifestFile(l.registry.Addr + "/runner/" + name + ":latest")
	if err != nil {
		return nil, err
	}
	image := l.registry.Addr + "/runner/" + name + ":plain"
	scratch, err := l.scratch()
	if err != nil {
		return nil, err
	}
	pulled, wrote, sandboxes := filepath.Join(scratch, "pulled"), filepath.Join(scratch, "wrote"), filepath.Join(scratch, "sandboxes")
	for _, d := range []string{pulled, wrote, sandboxes} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	commands := fmt.Sprintf(runnerCompile, pulled+"/*", l.rootfs(), filepath.Join(l.dir, "src", "runner"), wrote) + " && " + fmt.Sprintf(runnerSum, wrote, wrote)
	asked := []string{"read the manifests of the base and the cache, with their configurations", "read", l.debian, cache}
	same, err := l.parts(l.start(), asked,
		[]string{"ask for the image's layers and put its manifest", "put", manifest, image, "0"})
	if err != nil {
		return nil, err
	}
	edited, err := l.parts(
		[]string{"fetch, hash, inflate, hash, write the files of the cache's layers, one to each processor", "pull", cache, pulled},
		l.sandboxes(sandboxes, 2),
		[]string{"the two steps' own commands, with no sandbox", "start", "/bin/sh", "-c", commands},
		[]string{"hash what they wrote", "hash", wrote},
		[]string{"gzip it on all processors", "compress", wrote, "gzip"},
		[]string{"ask for the layers that are there, put two, the configuration and the manifest", "put", manifest, image, "2"},
	)
	return map[string][]part{"W16 same": same, "W16 edited": slices.Concat(same[:2], edited)}, err
}
