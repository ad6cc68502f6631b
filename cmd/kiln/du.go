package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/kiln-build/kiln/request"
)

type diskUsageOptions struct {
	place
	verbose, json  bool
	format         string
	filters        []string
	stdout, stderr io.Writer
}

func newDiskUsageCommand() *cli.Command {
	var o diskUsageOptions
	return &cli.Command{
		Name:  "du",
		Usage: "list what the state folder holds",
		Description: "The size of a record is what it adds on the disk to what those have that it stands on; a * says that others\n" +
			"stand on it, or have the same layer.\n\n" + filterHelp + "\n\n" + exitHelp,
		Flags: append(placeFlags(&o.place),
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "all that is known of each", Destination: &o.verbose},
			&cli.BoolFlag{Name: "json", Usage: "print JSON, an object a line", Destination: &o.json},
			&cli.StringFlag{Name: "format", Usage: formatUsage, Destination: &o.format},
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
	show, err := usagePrinter(o.stdout, o.format, o.json, o.verbose)
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
	if err := show(list); err != nil || o.json || o.format != "" {
		return err
	}
	printTotals(o.stdout, list)
	return nil
}

const formatUsage = "print each in a Go template, {{.ID}} {{.Size}} for one, or json; the fields are those of --json"

// usagePrinter gives what prints a list in the form that the flags ask for.
func usagePrinter(w io.Writer, format string, asJSON, verbose bool) (func([]request.Usage) error, error) {
	switch {
	case asJSON || format == "json":
		return func(list []request.Usage) error { return printUsageJSON(w, list) }, nil
	case format != "":
		t, err := template.New("--format").Funcs(template.FuncMap{"json": toJSON}).Parse(format)
		if err != nil {
			return nil, usagef("--format: %v", err)
		}
		return func(list []request.Usage) error {
			for _, u := range list {
				if err := t.Execute(w, u); err != nil {
					return usagef("--format: %v", err)
				}
				fmt.Fprintln(w)
			}
			return nil
		}, nil
	case verbose:
		return func(list []request.Usage) error { printUsageVerbose(w, list); return nil }, nil
	}
	return func(list []request.Usage) error { printUsage(w, list); return nil }, nil
}

func toJSON(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
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
