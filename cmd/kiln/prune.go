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
	minFree        string
	reserved       string
	verbose, json  bool
	format         string
	filters        []string
	stdout, stderr io.Writer
}

func newPruneCommand() *cli.Command {
	var o pruneOptions
	return &cli.Command{
		Name:  "prune",
		Usage: "collect what the state folder need not hold",
		Description: "This collects whatever no build holds and the filters hold for. With --max-used-space or --min-free-space it\n" +
			"collects, longest unused first, until the state folder is so small, measured as du -s does, and so much is free\n" +
			"on its disk; what --reserved-space gives is left in any case. Sizes are 10GB (units are powers of 1,024), bytes,\n" +
			"or 20%, of the disk. What was collected is built again when it is needed.\n\n" + filterHelp + "\n\n" + exitHelp,
		Flags: append(placeFlags(&o.place),
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "collect what parts of kiln remember to be fast, too", Destination: &o.all},
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "do not ask", Destination: &o.force},
			&cli.DurationFlag{Name: "keep-duration", Usage: "keep what was used since, 48h for one", Destination: &o.keepDuration},
			&cli.StringFlag{Name: "max-used-space", Aliases: []string{"keep-storage"}, Usage: "collect until the state folder is no larger", Destination: &o.maxUsed},
			&cli.StringFlag{Name: "min-free-space", Usage: "collect until so much is free on the disk", Destination: &o.minFree},
			&cli.StringFlag{Name: "reserved-space", Usage: "collect nothing while the state folder is no larger", Destination: &o.reserved},
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "all that is known of each", Destination: &o.verbose},
			&cli.BoolFlag{Name: "json", Usage: "print JSON, an object a line", Destination: &o.json},
			&cli.StringFlag{Name: "format", Usage: formatUsage, Destination: &o.format},
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
	if o.keepDuration < 0 {
		return usagef("--keep-duration %v: want a time that has passed since, 48h for one", o.keepDuration)
	}
	p := request.Prune{All: o.all, KeepDuration: o.keepDuration}
	var err error
	for _, bound := range []struct {
		flag, text string
		space      *request.DiskSpace
	}{
		{"--max-used-space", o.maxUsed, &p.MaxUsed}, {"--min-free-space", o.minFree, &p.MinFree}, {"--reserved-space", o.reserved, &p.Reserved},
	} {
		if bound.text == "" {
			continue
		}
		if err := bound.space.UnmarshalText([]byte(bound.text)); err != nil {
			return usagef("%s: %v", bound.flag, err)
		}
		if *bound.space == (request.DiskSpace{}) {
			return usagef("%s %s is no bound; without it there is none", bound.flag, bound.text)
		}
	}
	show, err := usagePrinter(o.stdout, o.format, o.json, o.verbose)
	if err != nil {
		return err
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
	if err := show(gone); err != nil || o.json || o.format != "" {
		return err
	}
	var sum int64
	for _, u := range gone {
		sum += u.Size
	}
	fmt.Fprintf(o.stdout, "Total:\t%s\n", units.BytesSize(float64(sum)))
	return nil
}

// confirm asks before anything is collected.
func confirm(o pruneOptions) error {
	what := "what is cached and no build holds"
	if o.maxUsed != "" || o.minFree != "" || o.reserved != "" || o.keepDuration > 0 || len(o.filters) > 0 {
		what = "what is cached, as far as that was asked for"
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
