package main

import (
	"context"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/request"
)

func newDebugCommand() *cli.Command {
	return &cli.Command{
		Name:        "debug",
		Usage:       "look into builds",
		Subcommands: []*cli.Command{newDebugLLBCommand()},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usagef("kiln debug has no command %q; `kiln debug --help` lists them", c.Args().First())
			}
			return cli.ShowSubcommandHelp(c)
		},
	}
}

// compiler is an engine that gives the graphs that a request compiles to; all of
// them are.
type compiler interface {
	Graphs(ctx context.Context, r *request.Request) ([]llb.Edge, error)
}

var _ compiler = away{}

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
		ArgsUsage:   "PATH | URL | -",
		Description: exitHelp,
		Flags: append(placeFlags(&o.build.place),
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
	release, err := readContext(c.Context, &req, c.Args().First(), o.build.file, os.Stdin)
	if err != nil {
		return err
	}
	defer release()
	engine, err := findEngine(c.Context, o.build.place, o.stderr)
	if err != nil {
		return err
	}
	defer engine.Close(c.Context)
	images, err := engine.(compiler).Graphs(c.Context, &req)
	if err != nil {
		return err
	}
	for _, image := range images {
		if err := draw(o.stdout, image); err != nil {
			return err
		}
	}
	return nil
}
