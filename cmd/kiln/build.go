package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/urfave/cli/v2"
)

// buildOptions are the flags of `kiln build` as they were written.
type buildOptions struct {
	place
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
	proxyNetwork   bool
	allow          []string
	iidfile        string
	metadataFile   string
	call           string
	check          bool
	frontend       string
	onError        string
	opts           []string
	why            why
	attests        attestOptions
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
		Description: "PATH is the build context, a folder or a tarball; - reads a Dockerfile or a tarball from standard input.\n\n" + exitHelp,
		Flags: append(slices.Concat(placeFlags(&o.place), cacheFlags(), whyFlags(&o.why), attestFlags(&o.attests)),
			&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "the Dockerfile (default: PATH/Dockerfile); - reads it from standard input", Destination: &o.file},
			listFlag("tag", "name and tag of the image; may be repeated", "t"),
			&cli.StringFlag{Name: "target", Usage: "the stage to build", Destination: &o.target},
			listFlag("build-arg", "value of an ARG, NAME=VALUE; NAME alone takes the environment's"),
			listFlag("build-context", "a further context, NAME=PATH or NAME=docker-image://IMAGE and the like"),
			listFlag("label", "label of the image, NAME=VALUE"),
			listFlag("annotation", "annotation of the image, [TYPE[,TYPE…]:]NAME=VALUE, where TYPE is manifest, index, manifest-descriptor or index-descriptor, and may end in a platform, [linux/arm64]"),
			&cli.BoolFlag{Name: "no-cache", Usage: "run every step", Destination: &o.noCache},
			listFlag("no-cache-filter", "run every step of these stages"),
			&cli.BoolFlag{Name: "pull", Usage: "ask registries what tags stand for now", Destination: &o.pull},
			listFlag("output", "what to write: type=oci|docker|image|registry|local|tar|cacheonly[,dest=FILE][,name=…]…; a path alone is a folder, - a tarball on standard output", "o"),
			&cli.BoolFlag{Name: "push", Usage: "shorthand for --output type=registry", Destination: &o.push},
			&cli.StringSliceFlag{Name: "platform", Usage: "platform to build for, linux/arm64 for one", EnvVars: []string{"DOCKER_DEFAULT_PLATFORM"}},
			&cli.StringFlag{Name: "progress", Usage: "auto, plain, tty, rawjson, quiet (as --quiet) or none", Value: "auto", EnvVars: []string{"BUILDKIT_PROGRESS"}, Destination: &o.progress},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print the image's id only: the digest of its configuration, or of its index", Destination: &o.quiet},
			listFlag("secret", "secret for RUN --mount=type=secret, id=ID[,src=FILE|,env=NAME]"),
			listFlag("ssh", "agent or keys for RUN --mount=type=ssh, default|ID[=SOCKET|KEY[,KEY…]]"),
			&cli.StringFlag{Name: "network", Usage: "network of RUN steps: default, host or none", Value: "default", Destination: &o.network},
			&cli.BoolFlag{Name: "proxy-network", Usage: "leave RUN steps no way out but a proxy, which knows what they fetch", Destination: &o.proxyNetwork},
			listFlag("add-host", "line of /etc/hosts in steps, NAME=ADDRESS[,ADDRESS…]"),
			&cli.StringFlag{Name: "shm-size", Usage: "size of /dev/shm in steps, 128m for one", Destination: &o.shmSize},
			listFlag("ulimit", "limit of steps, nofile=1024:2048 for one"),
			&cli.StringFlag{Name: "cgroup-parent", Usage: "cgroup that steps run below", Destination: &o.cgroupParent},
			listFlag("allow", "entitlement: network.host, security.insecure, device or device=NAME"),
			&cli.StringFlag{Name: "iidfile", Usage: "write the image's id to this file", Destination: &o.iidfile},
			&cli.StringFlag{Name: "metadata-file", Usage: "write what is known of the result to this file, as JSON", Destination: &o.metadataFile},
			&cli.StringFlag{Name: "call", Usage: "build, or answer from the Dockerfile: check, outline or targets[,format=json][,ignorestatus]", Value: "build", Destination: &o.call},
			&cli.StringFlag{Name: "frontend", Usage: "what reads the build description: dockerfile.v0, gateway.v0 for the image that --opt source=IMAGE names, or exec:PATH for a program of this machine", Destination: &o.frontend},
			listFlag("opt", "option of the frontend, NAME=VALUE"),
			&cli.StringFlag{Name: "on-error", Usage: "what to do when a step fails: end, or open a shell where it failed (shell)", Value: onErrorEnd, Destination: &o.onError},
			&cli.BoolFlag{Name: "check", Usage: "shorthand for --call check", Destination: &o.check},
		),
		Action: func(c *cli.Context) error {
			o.stdin, o.stdout, o.stderr = os.Stdin, c.App.Writer, c.App.ErrWriter
			o.lists(c)
			return runBuild(c.Context, o, c.Args().Slice())
		},
	}
}

// forPrograms reports whether no more is to be shown than what was asked for.
func (o *buildOptions) forPrograms() bool {
	return o.progress == progressQuiet || o.progress == progressNone || o.progress == "rawjson"
}

// lists reads the flags that may be repeated.
func (o *buildOptions) lists(c *cli.Context) {
	for name, to := range map[string]*[]string{
		"tag": &o.tags, "build-arg": &o.buildArgs, "build-context": &o.contexts, "label": &o.labels,
		"annotation": &o.annotations, "cache-from": &o.cacheFrom, "cache-to": &o.cacheTo, "no-cache-filter": &o.noCacheFilter, "output": &o.outputs, "platform": &o.platforms,
		"secret": &o.secrets, "ssh": &o.ssh, "add-host": &o.addHosts, "ulimit": &o.ulimits, "allow": &o.allow, "attest": &o.attests.attest,
		"opt": &o.opts, "fail-on-miss": &o.why.failOnMiss,
	} {
		*to = c.StringSlice(name)
	}
}

// runBuild builds, shows how it goes, and writes the files that were asked for.
func runBuild(ctx context.Context, o buildOptions, args []string) error {
	if len(args) != 1 {
		return usagef("kiln build takes one argument, the build context: a path, a URL or -; got %d", len(args))
	}
	if o.quiet {
		o.progress = progressQuiet
	}
	o.quiet = o.progress == progressQuiet
	asked, err := o.question()
	if err != nil {
		return err
	}
	req, err := o.request()
	if err != nil {
		return err
	}
	if err := o.stayHere(); err != nil {
		return err
	}
	if req.Call = asked.name; req.Call != "" {
		req.Outputs = nil
	}
	release, err := readContext(ctx, &req, args[0], o.file, o.stdin)
	if err != nil {
		return err
	}
	defer release()

	if err := o.why.ask(&o, &req); err != nil {
		return err
	}
	req.Provenance = o.metadataFile != "" && req.Call == "" && metadataProvenance() != provenanceNone
	display, err := newDisplay(o.progress, o.stderr)
	if err != nil {
		return err
	}
	if o.place.shell != nil {
		o.place.shell.before = func() { display.close(true) }
	}
	letInterrupt(ctx, req.Outputs)
	result, err := buildAt(ctx, o.place, &req, display.status, o.stderr)
	display.close(o.forPrograms())
	if cause := context.Cause(ctx); cause != nil && err != nil {
		return cause
	}
	if said := o.why.say(ctx, &o, &req, result, err); err == nil {
		err = said
	}
	if err != nil || o.why.dryRun {
		return err
	}
	if req.Call != "" {
		return asked.answer(o.stdout, result)
	}
	if len(req.Outputs)+len(o.outputs) == 0 && !o.quiet && o.progress != progressNone {
		fmt.Fprintln(o.stderr, "No output was asked for: the result stays in the cache. Write it with --output, or push it with --push.")
	}
	return o.report(result, req.Ref, display.warnings)
}
