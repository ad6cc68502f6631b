package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/kiln-build/kiln/request"
)

type diskUsageOptions struct {
	place
	verbose, json  bool
	filters        []string
	stdout, stderr io.Writer
}

func newDiskUsageCommand() *cli.Command {
	var o diskUsageOptions
	return &cli.Command{
		Name:        "du",
		Usage:       "list what the state folder holds",
		Description: filterHelp + "\n\n" + exitHelp,
		Flags: append(placeFlags(&o.place),
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "all that is known of each", Destination: &o.verbose},
			&cli.BoolFlag{Name: "json", Usage: "print JSON, an object a line", Destination: &o.json},
			listFlag("filter", "list only what FIELD=VALUE holds for"),
		),
		Action: func(c *cli.Context) error {
			o.stdout, o.stderr = c.App.Writer, c.App.ErrWriter
			o.filters = c.StringSlice("filter")
			if c.NArg() > 0 {
				return usagef("kiln du takes no arguments")
			}
			return runDiskUsage(c, o)
		},
	}
}

func runDiskUsage(c *cli.Context, o diskUsageOptions) error {
	keep, err := parseFilters(o.filters)
	if err != nil {
		return err
	}
	engine, err := findEngine(c.Context, o.place, o.stderr)
	if err != nil {
		return err
	}
	defer engine.Close(c.Context)
	all, err := engine.Usage(c.Context)
	if err != nil {
		return err
	}
	var list []request.Usage
	for _, u := range all {
		if keep(u) {
			list = append(list, u)
		}
	}
	switch {
	case o.json:
		return printUsageJSON(o.stdout, list)
	case o.verbose:
		printUsageVerbose(o.stdout, list)
	default:
		printUsage(o.stdout, list)
	}
	printTotals(o.stdout, list)
	return nil
}

// shortID is how much of an id the table shows; prefixes that long name it to --filter.
const shortID = 25

func printUsage(w io.Writer, list []request.Usage) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED\tDESCRIPTION")
	for _, u := range list {
		id, size := u.ID[:min(shortID, len(u.ID))], units.BytesSize(float64(u.Size))
		if u.Shared {
			size += "*"
		}
		fmt.Fprintf(tw, "%s\t%v\t%s\t%s\t%s\n", id, !u.InUse, size, ago(u.LastUsed), u.Description)
	}
	tw.Flush()
}

func ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return units.HumanDuration(time.Since(t)) + " ago"
}

func printUsageVerbose(w io.Writer, list []request.Usage) {
	for _, u := range list {
		tw := tabwriter.NewWriter(w, 0, 8, 1, ' ', 0)
		fmt.Fprintf(tw, "ID:\t%s\nParents:\t%v\nCreated at:\t%s\nReclaimable:\t%v\nShared:\t%v\nSize:\t%s\nDescription:\t%s\nUsage count:\t%d\nLast used:\t%s\nType:\t%s\n\n",
			u.ID, u.Parents, u.Created.UTC().Format(time.RFC3339), !u.InUse, u.Shared, units.BytesSize(float64(u.Size)), u.Description, u.Uses, ago(u.LastUsed), u.Kind)
		tw.Flush()
	}
}

func printUsageJSON(w io.Writer, list []request.Usage) error {
	enc := json.NewEncoder(w)
	for _, u := range list {
		if err := enc.Encode(u); err != nil {
			return err
		}
	}
	return nil
}

func printTotals(w io.Writer, list []request.Usage) {
	var shared, private, reclaimable, total int64
	for _, u := range list {
		total += u.Size
		if u.Shared {
			shared += u.Size
		} else {
			private += u.Size
		}
		if !u.InUse {
			reclaimable += u.Size
		}
	}
	tw := tabwriter.NewWriter(w, 0, 8, 1, ' ', 0)
	if shared > 0 {
		fmt.Fprintf(tw, "Shared:\t%s\nPrivate:\t%s\n", units.BytesSize(float64(shared)), units.BytesSize(float64(private)))
	}
	fmt.Fprintf(tw, "Reclaimable:\t%s\nTotal:\t%s\n", units.BytesSize(float64(reclaimable)), units.BytesSize(float64(total)))
	tw.Flush()
}
