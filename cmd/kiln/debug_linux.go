package main

import (
	"io"

	"github.com/urfave/cli/v2"

	"github.com/kiln-build/kiln/llb"
)

func newDebugCommand() *cli.Command {
	return &cli.Command{
		Name:        "debug",
		Usage:       "look into builds",
		Subcommands: []*cli.Command{newDebugLLBCommand()},
	}
}

type debugLLBOptions struct {
	build          buildOptions
	format         string
	stdout, stderr io.Writer
}

func newDebugLLBCommand() *cli.Command {
	var o debugLLBOptions
	return &cli.Command{
		Name:        "llb",
		Usage:       "print the graph that a Dockerfile compiles to",
		ArgsUsage:   "PATH | URL",
		Description: exitHelp,
		Flags: append(stateFlags(&o.build.root, &o.build.config),
			&cli.StringFlag{Name: "format", Usage: "json or dot (Graphviz)", Value: "json", Destination: &o.format},
			&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "the Dockerfile (default: PATH/Dockerfile)", Destination: &o.build.file},
			&cli.StringFlag{Name: "target", Usage: "the stage to compile", Destination: &o.build.target},
			listFlag("build-arg", "value of an ARG, NAME=VALUE"),
			listFlag("build-context", "a further context, NAME=PATH"),
			listFlag("platform", "platform to build for"),
		),
		Action: func(c *cli.Context) error {
			o.stdout, o.stderr = c.App.Writer, c.App.ErrWriter
			o.build.lists(c)
			return runDebugLLB(c, o)
		},
	}
}

func runDebugLLB(c *cli.Context, o debugLLBOptions) error {
	if c.NArg() != 1 {
		return usagef("kiln debug llb takes one argument, the build context")
	}
	draw := map[string]func(io.Writer, llb.Edge) error{"json": llb.JSON, "dot": llb.Dot}[o.format]
	if draw == nil {
		return usagef("--format %s: the formats are json and dot", o.format)
	}
	req, err := o.build.request()
	if err != nil {
		return err
	}
	req.Context, req.Dockerfile = c.Args().First(), o.build.file
	engine, err := openEngine(c.Context, o.build.root, o.build.config, o.stderr)
	if err != nil {
		return err
	}
	defer closeEngine(engine, o.stderr)
	images, err := engine.Compile(c.Context, engineRequest(&req, nil))
	if err != nil {
		return err
	}
	for _, image := range images {
		if err := draw(o.stdout, image.Root); err != nil {
			return err
		}
	}
	return nil
}
