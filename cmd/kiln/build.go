package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/kiln-build/kiln"
)

// buildOptions are the flags of `kiln build` as they were written.
type buildOptions struct {
	root, config   string
	file, target   string
	tags           []string
	buildArgs      []string
	contexts       []string
	labels         []string
	annotations    []string
	cacheFrom      []string
	cacheTo        []string
	noCache, pull  bool
	noCacheFilter  []string
	outputs        []string
	push           bool
	platforms      []string
	progress       string
	quiet          bool
	secrets, ssh   []string
	network        string
	addHosts       []string
	shmSize        string
	ulimits        []string
	cgroupParent   string
	allow          []string
	iidfile        string
	metadataFile   string
	call           string
	check          bool
	stdin          io.Reader
	stdout, stderr io.Writer
}

func newBuildCommand() *cli.Command {
	var o buildOptions
	return &cli.Command{
		Name:        "build",
		Aliases:     []string{"b"},
		Usage:       "build an image from a Dockerfile",
		ArgsUsage:   "PATH | URL | -",
		Description: "PATH is the build context; - reads a Dockerfile or a tarball of a context from standard input.\n\n" + exitHelp,
		Flags: append(append(stateFlags(&o.root, &o.config), cacheFlags()...),
			&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "the Dockerfile (default: PATH/Dockerfile); - reads it from standard input", Destination: &o.file},
			listFlag("tag", "name and tag of the image; may be repeated", "t"),
			&cli.StringFlag{Name: "target", Usage: "the stage to build", Destination: &o.target},
			listFlag("build-arg", "value of an ARG, NAME=VALUE; NAME alone takes the environment's"),
			listFlag("build-context", "a further context, NAME=PATH or NAME=docker-image://IMAGE and the like"),
			listFlag("label", "label of the image, NAME=VALUE"),
			listFlag("annotation", "annotation of the image, [TYPE:]NAME=VALUE"),
			&cli.BoolFlag{Name: "no-cache", Usage: "run every step", Destination: &o.noCache},
			listFlag("no-cache-filter", "run every step of these stages"),
			&cli.BoolFlag{Name: "pull", Usage: "ask registries what tags stand for now", Destination: &o.pull},
			listFlag("output", "what to write: type=oci|docker|image|registry|local|tar[,dest=FILE][,name=…]…; a path alone is a folder, - a tarball on standard output", "o"),
			&cli.BoolFlag{Name: "push", Usage: "shorthand for --output type=registry", Destination: &o.push},
			listFlag("platform", "platform to build for, linux/arm64 for one"),
			&cli.StringFlag{Name: "progress", Usage: "auto, plain, tty, rawjson or quiet", Value: "auto", EnvVars: []string{"BUILDKIT_PROGRESS"}, Destination: &o.progress},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print the image's digest only", Destination: &o.quiet},
			listFlag("secret", "secret for RUN --mount=type=secret, id=ID[,src=FILE|,env=NAME]"),
			listFlag("ssh", "agent or keys for RUN --mount=type=ssh, default|ID[=SOCKET|KEY[,KEY…]]"),
			&cli.StringFlag{Name: "network", Usage: "network of RUN steps: default, host or none", Value: "default", Destination: &o.network},
			listFlag("add-host", "line of /etc/hosts in steps, NAME:ADDRESS"),
			&cli.StringFlag{Name: "shm-size", Usage: "size of /dev/shm in steps, 128m for one", Destination: &o.shmSize},
			listFlag("ulimit", "limit of steps, nofile=1024:2048 for one"),
			&cli.StringFlag{Name: "cgroup-parent", Usage: "cgroup that steps run below", Destination: &o.cgroupParent},
			listFlag("allow", "entitlement: network.host, security.insecure or device"),
			&cli.StringFlag{Name: "iidfile", Usage: "write the image's digest to this file", Destination: &o.iidfile},
			&cli.StringFlag{Name: "metadata-file", Usage: "write what is known of the result to this file, as JSON", Destination: &o.metadataFile},
			&cli.StringFlag{Name: "call", Usage: "build, or answer from the Dockerfile: check, outline or targets[,format=json][,ignorestatus]", Value: "build", Destination: &o.call},
			&cli.BoolFlag{Name: "check", Usage: "shorthand for --call check", Destination: &o.check},
		),
		Action: func(c *cli.Context) error {
			o.stdin, o.stdout, o.stderr = os.Stdin, c.App.Writer, c.App.ErrWriter
			o.lists(c)
			return runBuild(c.Context, o, c.Args().Slice())
		},
	}
}

// lists reads the flags that may be repeated.
func (o *buildOptions) lists(c *cli.Context) {
	for name, to := range map[string]*[]string{
		"tag": &o.tags, "build-arg": &o.buildArgs, "build-context": &o.contexts, "label": &o.labels,
		"annotation": &o.annotations, "cache-from": &o.cacheFrom, "cache-to": &o.cacheTo, "no-cache-filter": &o.noCacheFilter, "output": &o.outputs, "platform": &o.platforms,
		"secret": &o.secrets, "ssh": &o.ssh, "add-host": &o.addHosts, "ulimit": &o.ulimits, "allow": &o.allow,
	} {
		*to = c.StringSlice(name)
	}
}

// runBuild builds, shows how it goes, and writes the files that were asked for.
func runBuild(ctx context.Context, o buildOptions, args []string) error {
	if len(args) != 1 {
		return usagef("kiln build takes one argument, the build context: a path, a URL or -; got %d", len(args))
	}
	asked, err := o.question()
	if err != nil {
		return err
	}
	req, err := o.request()
	if err != nil {
		return err
	}
	if req.Call = asked.name; req.Call != "" {
		req.Outputs = nil
	}
	release, err := readContext(&req, args[0], o.file, o.stdin)
	if err != nil {
		return err
	}
	defer release()

	engine, err := openEngine(ctx, o.root, o.config, o.stderr)
	if err != nil {
		return err
	}
	defer closeEngine(engine, o.stderr)

	display, err := newDisplay(o.progress, o.quiet, o.stderr)
	if err != nil {
		return err
	}
	req.Events = display.event
	letInterrupt(ctx, req.Outputs)
	result, err := engine.Build(ctx, req)
	display.close(o.quiet || o.progress == "rawjson")
	if cause := context.Cause(ctx); cause != nil && err != nil {
		return cause
	}
	if err != nil {
		return err
	}
	if req.Call != "" {
		return asked.answer(o.stdout, result)
	}
	if len(req.Outputs) == 0 && !o.quiet {
		fmt.Fprintln(o.stderr, "No output was asked for: the result stays in the cache. Write it with --output, or push it with --push.")
	}
	return o.report(result)
}

// report writes the image's digest and the metadata where the flags say.
func (o *buildOptions) report(r *kiln.Result) error {
	if o.quiet && r.Digest != "" {
		fmt.Fprintln(o.stdout, r.Digest)
	}
	if o.iidfile != "" {
		id := r.Metadata["containerimage.config.digest"]
		if id == "" {
			id = r.Digest
		}
		if err := os.WriteFile(o.iidfile, []byte(id), 0o644); err != nil {
			return fmt.Errorf("writing the image id: %w", err)
		}
	}
	if o.metadataFile == "" {
		return nil
	}
	data, err := json.MarshalIndent(metadataJSON(r), "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.metadataFile, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the metadata: %w", err)
	}
	return nil
}

// metadataJSON gives a result's metadata with those values that are JSON as such,
// as buildx writes them.
func metadataJSON(r *kiln.Result) map[string]any {
	out := map[string]any{}
	for k, v := range r.Metadata {
		if raw := []byte(v); len(raw) > 0 && (raw[0] == '{' || raw[0] == '[') && json.Valid(raw) {
			out[k] = json.RawMessage(raw)
		} else {
			out[k] = v
		}
	}
	return out
}

// request turns the flags into what the engine takes, but for the context.
func (o *buildOptions) request() (kiln.Request, error) {
	r := kiln.Request{
		Target: o.target, Platforms: splitAll(o.platforms), NoCache: o.noCache, NoCacheFilter: splitAll(o.noCacheFilter),
		Pull: o.pull, AddHosts: o.addHosts, Ulimits: o.ulimits, CgroupParent: o.cgroupParent, Allow: splitAll(o.allow),
		Attrs: map[string]string{},
	}
	var err error
	if r.BuildArgs, err = pairs("build-arg", o.buildArgs, os.LookupEnv); err != nil {
		return r, err
	}
	if r.Labels, err = pairs("label", o.labels, nil); err != nil {
		return r, err
	}
	if r.Contexts, err = pairs("build-context", o.contexts, nil); err != nil {
		return r, err
	}
	switch o.network {
	case "", "default", "host", "none":
		r.Network = o.network
	default:
		return r, usagef("--network %s: the networks are default, host and none", o.network)
	}
	if r.Network == "host" {
		r.Allow = append(r.Allow, "network.host")
	}
	if o.shmSize != "" {
		if r.ShmSize, err = units.RAMInBytes(o.shmSize); err != nil || r.ShmSize <= 0 {
			return r, usagef("--shm-size %s is no size; 64m is one", o.shmSize)
		}
	}
	if r.Secrets, err = parseSecrets(o.secrets); err != nil {
		return r, err
	}
	if r.SSH, err = parseSSH(o.ssh); err != nil {
		return r, err
	}
	if r.CacheFrom, err = parseCaches("cache-from", o.cacheFrom); err != nil {
		return r, err
	}
	if r.CacheTo, err = parseCaches("cache-to", o.cacheTo); err != nil {
		return r, err
	}
	r.Outputs, err = parseOutputs(o)
	return r, err
}

// splitAll splits comma-separated values.
func splitAll(values []string) []string {
	var out []string
	for _, v := range values {
		for _, part := range strings.Split(v, ",") {
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
	}
	return out
}

// pairs reads NAME=VALUE words. Where env is given, NAME alone takes its value
// from there, and is left out where that has none.
func pairs(flag string, words []string, env func(string) (string, bool)) (map[string]string, error) {
	m := map[string]string{}
	for _, w := range words {
		name, value, ok := strings.Cut(w, "=")
		if name == "" {
			return nil, usagef("--%s %q: want NAME=VALUE", flag, w)
		}
		if !ok && env == nil && flag != "label" {
			return nil, usagef("--%s %q: want NAME=VALUE", flag, w)
		}
		if !ok && env != nil {
			if value, ok = env(name); !ok {
				continue
			}
		}
		m[name] = value
	}
	return m, nil
}

// readContext sets what the request reads: a folder, an address, or what standard
// input gives, which is a Dockerfile or a tarball. release removes what it unpacked.
func readContext(r *kiln.Request, path, file string, stdin io.Reader) (release func(), err error) {
	release = func() {}
	if path == "-" && file == "-" {
		return release, usagef("standard input cannot be both the context and the Dockerfile")
	}
	if file == "-" {
		r.Context = path
		r.DockerfileText, err = readDockerfile(stdin)
		return release, err
	}
	r.Context, r.Dockerfile = path, file
	if path != "-" {
		return release, nil
	}
	in := bufio.NewReaderSize(stdin, 1<<16)
	head, err := in.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return release, fmt.Errorf("reading standard input: %w", err)
	}
	dir, err := os.MkdirTemp("", "kiln-context-")
	if err != nil {
		return release, err
	}
	release = func() { os.RemoveAll(dir) }
	r.Context = dir
	if !isArchive(head) {
		r.DockerfileText, err = readDockerfile(in)
		return release, err
	}
	if err := unpackContext(in, dir); err != nil {
		return release, fmt.Errorf("unpacking the context from standard input: %w", err)
	}
	if file != "" {
		r.Dockerfile = filepath.Join(dir, filepath.Clean("/"+file))
	}
	return release, nil
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
