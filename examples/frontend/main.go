// Package main is a frontend of a hundred lines. It compiles the file called
// Kilnfile, a recipe of one instruction a line:
//
//	from IMAGE         what the steps run on; $NAME stands for a build argument
//	copy SOURCE DEST   a path of the build context
//	run COMMAND        a command of the shell
//	start COMMAND      what the image runs
//
// Run it as `kiln build --frontend exec:./frontend .`, or put it into an image and
// name that on the first line of a Dockerfile. docs/frontends.md explains it.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/gateway/grpcclient"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func main() {
	// Standard input and output are the connection to the engine. What goes wrong
	// before there is one belongs on standard error.
	if err := grpcclient.RunFromEnvironment(context.Background(), build); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// build reads the recipe, and returns the graph that it comes to with the image's config.
func build(ctx context.Context, c client.Client) (*client.Result, error) {
	recipe, err := readRecipe(ctx, c)
	if err != nil {
		return nil, err
	}
	image := ocispecs.Image{Platform: c.BuildOpts().Workers[0].Platforms[0]}
	state := llb.Scratch()
	for i, line := range recipe {
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "from":
			name := os.Expand(rest, func(arg string) string { return c.BuildOpts().Opts["build-arg:"+arg] })
			if state, image, err = from(ctx, c, name); err != nil {
				return nil, err
			}
		case "copy":
			source, dest, _ := strings.Cut(rest, " ")
			state = state.File(llb.Copy(llb.Local("context"), source, dest, &llb.CopyInfo{CopyDirContentsOnly: true, CreateDestPath: true}), llb.WithCustomName(line))
		case "run":
			state = state.Run(llb.Args([]string{"/bin/sh", "-c", rest}), llb.WithCustomName(line)).Root()
		case "start":
			image.Config.Cmd = []string{"/bin/sh", "-c", rest}
		default:
			return nil, fmt.Errorf("step %d: there is no instruction %q", i+1, word)
		}
	}
	graph, err := state.Marshal(ctx)
	if err != nil {
		return nil, err
	}
	result, err := c.Solve(ctx, client.SolveRequest{Definition: graph.ToPB()})
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(image)
	if err != nil {
		return nil, err
	}
	result.AddMeta("containerimage.config", config)
	return result, nil
}

// from starts on an image, whose config is what ours begins as.
func from(ctx context.Context, c client.Client, name string) (llb.State, ocispecs.Image, error) {
	var image ocispecs.Image
	_, _, config, err := c.ResolveImageConfig(ctx, name, sourceresolver.Opt{})
	if err == nil {
		err = json.Unmarshal(config, &image)
	}
	if err != nil {
		return llb.State{}, image, fmt.Errorf("from %s: %w", name, err)
	}
	state, err := llb.Image(name).WithImageConfig(config)
	return state, image, err
}

// readRecipe solves a graph of its own, the one file of the context, and reads it.
func readRecipe(ctx context.Context, c client.Client) ([]string, error) {
	name := "Kilnfile"
	if f := c.BuildOpts().Opts["filename"]; f != "" {
		name = f
	}
	graph, err := llb.Local("dockerfile", llb.IncludePatterns([]string{name}), llb.WithCustomName("load "+name)).Marshal(ctx)
	if err != nil {
		return nil, err
	}
	found, err := c.Solve(ctx, client.SolveRequest{Definition: graph.ToPB()})
	if err != nil {
		return nil, err
	}
	ref, err := found.SingleRef()
	if err != nil {
		return nil, err
	}
	text, err := ref.ReadFile(ctx, client.ReadRequest{Filename: name})
	if err != nil {
		return nil, err
	}
	var lines []string
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		if line := strings.TrimSpace(s.Text()); line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	return lines, nil
}
