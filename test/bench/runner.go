package main

import (
	"fmt"
	"path/filepath"
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
RUN cat /modules/* | md5sum > /sum && { cat /usr/bin/perl /src/* /sum; } > /program
FROM %[1]s AS tools
RUN for i in $(seq 1 10); do { cat /usr/bin/openssl /usr/bin/perl; echo $i; } > /usr/local/bin/tool$i; done
FROM tools
COPY --from=build /program /usr/local/bin/program
RUN md5sum /usr/local/bin/program > /program.md5
ENTRYPOINT ["/usr/local/bin/program"]
`

// runnerRound fills the cache, and then builds on empty runners: what was built
// before, and then with one line of its source changed.
func runnerRound(r *run) error {
	c, err := countBefore(r.registry.Addr)
	if err != nil {
		return err
	}
	defer c.close()
	file, err := r.write("runner/Dockerfile", fmt.Sprintf(runnerDockerfile, c.addr+"/debian:bookworm"))
	if err != nil {
		return err
	}
	source := func(line string) error {
		for i := range 50 {
			text := fmt.Sprintf("line %d of a source file\n", i)
			if i == 7 {
				text += line
			}
			if _, err := r.write(fmt.Sprintf("runner/src/file%d", i), text); err != nil {
				return err
			}
		}
		_, err := r.write("runner/modules.txt", "modules\n")
		return err
	}
	name := r.tool.name() + "-" + strconv.Itoa(r.n)
	cache := "type=registry,ref=" + c.addr + "/cache/" + name + ":main"
	b := build{
		context: filepath.Dir(file), dockerfile: file, push: c.addr + "/runner/" + name + ":latest",
		cacheFrom: cache, cacheTo: cache + ",mode=max,image-manifest=true,oci-mediatypes=true",
	}
	if err := source("as it was\n"); err != nil {
		return err
	}
	if err := r.untimed(b); err != nil {
		return err
	}
	for _, row := range []struct{ id, line string }{{"W16 same", "as it was\n"}, {"W16 edited", "changed\n"}} {
		if err := r.tool.reset(r.ctx); err != nil {
			return err
		}
		if err := source(row.line); err != nil {
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
			r.images[row.id] = oci.oci
		}
	}
	return nil
}
