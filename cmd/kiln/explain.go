package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/urfave/cli/v2"

	"github.com/kiln-build/kiln/explain"
	"github.com/kiln-build/kiln/request"
)

// explainOptions are the flags of `kiln explain`.
type explainOptions struct {
	place
	format         string
	stdout, stderr io.Writer
}

// formatFlag says how an explanation is printed.
func formatFlag(to *string, usage string) cli.Flag {
	return &cli.StringFlag{Name: "format", Usage: usage, Value: "text", Destination: to}
}

func newExplainCommand() *cli.Command {
	var o explainOptions
	return &cli.Command{
		Name:      "explain",
		Usage:     "say what a build had cached, and why the rest ran",
		ArgsUsage: "BUILD [STEP]",
		Description: "BUILD is the name that kiln build prints, or the beginning of it; last is the newest.\n" +
			"STEP is a step's number (3/7, or build 3/7 where several stages have one), its name\nor the beginning of it, or the beginning of its digest.\n\n" + exitHelp,
		Flags: append(placeFlags(&o.place), formatFlag(&o.format, "text or json")),
		Action: func(c *cli.Context) error {
			o.stdout, o.stderr = c.App.Writer, c.App.ErrWriter
			return runExplain(c.Context, o, c.Args().Slice())
		},
	}
}

func runExplain(ctx context.Context, o explainOptions, args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return usagef("kiln explain takes the name of a build, or last, and perhaps a step; got %d arguments", len(args))
	}
	if err := checkFormat(o.format); err != nil {
		return err
	}
	x, err := explained(ctx, o.place, args[0], o.stderr)
	if err != nil {
		return err
	}
	if len(args) == 2 {
		if err := x.Select(args[1]); err != nil {
			return err
		}
	}
	return printExplanation(o.stdout, x, o.format)
}

func checkFormat(format string) error {
	if format != "text" && format != "json" {
		return usagef("--format %s: the formats are text and json", format)
	}
	return nil
}

// askPatience is how long a build that has failed waits to learn whether there is
// anything to explain of it.
const askPatience = time.Second

// remembered reports whether the engine can explain a build: one that failed before it
// knew its steps, or in a daemon that is no kiln, it cannot.
func remembered(ctx context.Context, p place, ref string) bool {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	_, err := explained(ctx, p, ref, io.Discard)
	return err == nil
}

// explained asks the engine for the explanation of a build.
func explained(ctx context.Context, p place, ref string, stderr io.Writer) (*explain.Explanation, error) {
	r := &request.Request{Call: request.CallExplain, Attrs: map[string]string{request.AttrBuild: ref}}
	result, err := buildAt(ctx, p, r, func(*client.SolveStatus) {}, stderr)
	if cause := context.Cause(ctx); cause != nil && err != nil {
		return nil, cause
	}
	if err != nil {
		return nil, err
	}
	return explanationOf(result)
}

// explanationOf reads the explanation that an engine gave.
func explanationOf(r *request.Result) (*explain.Explanation, error) {
	text := r.Metadata[request.ExplanationKey]
	if text == "" {
		return nil, errors.New("the daemon does not explain builds; it is no kiln, or an older one")
	}
	x := new(explain.Explanation)
	if err := json.Unmarshal([]byte(text), x); err != nil {
		return nil, fmt.Errorf("reading the explanation: %w", err)
	}
	return x, nil
}

func printExplanation(w io.Writer, x *explain.Explanation, format string) error {
	if format == "text" {
		return x.Text(w)
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(x)
}

// why are the flags of `kiln build` that ask for explanations.
type why struct {
	explain, dryRun bool
	format          string
	failOnMiss      []string
}

// whyFlags are those flags, but for --fail-on-miss, which may be repeated.
func whyFlags(w *why) []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "explain", Usage: "print what was cached, and why the rest ran", Destination: &w.explain},
		&cli.BoolFlag{Name: "dry-run", Usage: "print what is cached, and why the rest would run; run no step, pull no layer, write no output", Destination: &w.dryRun},
		formatFlag(&w.format, "of --explain and --dry-run: text or json"),
		listFlag("fail-on-miss", "fail, with exit code 3, when a step runs whose whole name, [build 3/7] RUN make, is like PATTERN (* is any text, ? any character: '*RUN make*'); may be repeated"),
	}
}

// ask puts what the flags ask for into a request.
func (w *why) ask(o *buildOptions, r *request.Request) error {
	if err := checkFormat(w.format); err != nil {
		return err
	}
	if w.format != "text" && !w.explain && !w.dryRun {
		return usagef("--format is of --explain and --dry-run")
	}
	if w.dryRun && r.Call != "" {
		return usagef("--dry-run and --call: give one of them")
	}
	if w.explain && (o.quiet || slices.ContainsFunc(r.Outputs, func(out request.Output) bool { return out.Writer != nil })) {
		return usagef("--explain prints to standard output, which --quiet and --output - need")
	}
	if slices.Contains(w.failOnMiss, "") {
		return usagef("--fail-on-miss: a pattern is missing, '*RUN make*' for one")
	}
	r.FailOnMiss, r.Explain = w.failOnMiss, w.explain
	if w.dryRun {
		r.Call, r.Outputs, r.CacheTo = request.CallDryRun, nil, nil
	} else if r.Call == "" {
		r.Ref = strings.ToLower(rand.Text())
	}
	return nil
}

// shortBuild is how much of a build's name is printed; explain takes it.
const shortBuild = 10

// say prints what is known of a build that has ended: how is its error.
func (w *why) say(ctx context.Context, o *buildOptions, r *request.Request, result *request.Result, how error) error {
	switch {
	case how == nil && w.dryRun:
		x, err := explanationOf(result)
		if err != nil {
			return err
		}
		return printExplanation(o.stdout, x, w.format)
	case w.explain && r.Ref != "":
		x, err := explained(ctx, o.place, r.Ref, o.stderr)
		switch {
		case err != nil && how == nil:
			return err
		case err == nil:
			return printExplanation(o.stdout, x, w.format)
		}
	case r.Ref == "" || o.forPrograms():
	case how == nil && result.Metadata[request.AttrBuild] != "", how != nil && remembered(ctx, o.place, r.Ref):
		fmt.Fprintf(o.stderr, "Build %s: `kiln explain %[1]s` says what was cached, and why the rest ran.\n", r.Ref[:shortBuild])
	}
	return nil
}
