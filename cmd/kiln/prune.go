package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/kiln-build/kiln/request"
)

type pruneOptions struct {
	place
	all, force     bool
	keepDuration   time.Duration
	maxUsed        string
	filters        []string
	stdout, stderr io.Writer
}

func newPruneCommand() *cli.Command {
	var o pruneOptions
	return &cli.Command{
		Name:  "prune",
		Usage: "collect what the state folder need not hold",
		Description: "Without bounds this collects what no record leads to any more; --all collects every record as well.\n\n" +
			filterHelp + "\n\n" + exitHelp,
		Flags: append(placeFlags(&o.place),
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "collect whatever no build holds", Destination: &o.all},
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "do not ask", Destination: &o.force},
			&cli.DurationFlag{Name: "keep-duration", Usage: "keep what was used since, 48h for one", Destination: &o.keepDuration},
			&cli.StringFlag{Name: "max-used-space", Aliases: []string{"keep-storage"}, Usage: "collect, longest unused first, until the folder is no larger, 10GB for one", Destination: &o.maxUsed},
			listFlag("filter", "collect only what FIELD=VALUE holds for"),
		),
		Action: func(c *cli.Context) error {
			o.stdout, o.stderr = c.App.Writer, c.App.ErrWriter
			o.filters = c.StringSlice("filter")
			if c.NArg() > 0 {
				return usagef("kiln prune takes no arguments")
			}
			return runPrune(c, o)
		},
	}
}

func runPrune(c *cli.Context, o pruneOptions) error {
	p := request.Prune{All: o.all, KeepDuration: o.keepDuration}
	var err error
	if o.maxUsed != "" {
		if p.MaxUsed, err = units.FromHumanSize(o.maxUsed); err != nil || p.MaxUsed <= 0 {
			return usagef("--max-used-space %s is no size; 10GB is one", o.maxUsed)
		}
	}
	if len(o.filters) > 0 {
		if p.Filter, err = parseFilters(o.filters); err != nil {
			return err
		}
	}
	if !o.force {
		if err := confirm(o); err != nil {
			return err
		}
	}
	engine, err := findEngine(c.Context, o.place, o.stderr)
	if err != nil {
		return err
	}
	defer engine.Close(c.Context)
	gone, err := engine.Prune(c.Context, p)
	if err != nil {
		return err
	}
	printUsage(o.stdout, gone)
	var sum int64
	for _, u := range gone {
		sum += u.Size
	}
	fmt.Fprintf(o.stdout, "Total:\t%s\n", units.BytesSize(float64(sum)))
	return nil
}

// confirm asks before anything is collected.
func confirm(o pruneOptions) error {
	what := "what no record leads to"
	if o.all {
		what = "everything in the build cache"
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return usagef("this removes %s; say --force where there is nobody to ask", what)
	}
	fmt.Fprintf(o.stderr, "This removes %s. Continue? [y/N] ", what)
	answer, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(strings.ToLower(strings.TrimSpace(answer)), "y") {
		return fmt.Errorf("nothing was removed")
	}
	return nil
}
