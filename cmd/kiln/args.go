package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// interspersed moves the flags of a command line before its arguments, since
// people write `build . -t name` as often as the other way round, and the flag
// package stops at the first argument. What follows "--" stays as it is.
func interspersed(app *cli.App, args []string) ([]string, error) {
	out, rest := slices.Clip(args[:min(1, len(args))]), args[min(1, len(args)):] // os.Args stays as it is
	commands := app.Commands
	var flags []cli.Flag
	for len(rest) > 0 {
		cmd := find(commands, rest[0])
		if cmd == nil {
			break
		}
		out, rest = append(out, rest[0]), rest[1:]
		commands, flags = cmd.Subcommands, cmd.Flags
	}
	if flags == nil {
		return append(out, rest...), nil
	}
	var arguments []string
	for i := 0; i < len(rest); i++ {
		a := rest[i]
		if apart := split(flags, a); apart != nil {
			rest = slices.Concat(rest[:i], apart, rest[i+1:])
			a = rest[i]
		}
		switch {
		case a == "--":
			arguments = append(arguments, rest[i+1:]...)
			i = len(rest)
		case a == "-" || !strings.HasPrefix(a, "-"):
			arguments = append(arguments, a)
		default:
			out = append(out, longName(flags, a))
			if takesValue(flags, a) {
				if i+1 == len(rest) {
					return nil, usagef("flag %s needs a value", a)
				}
				i++
				out = append(out, rest[i])
			}
		}
	}
	return append(append(out, "--"), arguments...), nil
}

// split takes apart short flags that are written together, "-qf" for "-q -f", and such as
// have their value behind them, "-f-" for "-f=-". It gives nil for what is anything else.
func split(flags []cli.Flag, a string) (apart []string) {
	name, _, _ := strings.Cut(a, "=")
	if len(a) < 3 || a[0] != '-' || a[1] == '-' || flagOf(flags, name[1:]) != nil {
		return nil
	}
	for i := 1; i < len(a); i++ {
		f := flagOf(flags, a[i:i+1])
		if f == nil {
			return nil
		}
		short, value := "-"+a[i:i+1], a[i+1:]
		if f.(cli.DocGenerationFlag).TakesValue() {
			if value != "" {
				short += "=" + strings.TrimPrefix(value, "=")
			}
			return append(apart, short)
		}
		apart = append(apart, short)
	}
	return apart
}

// flagOf finds the flag that has a name; nil is none.
func flagOf(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

// takesValue reports whether the flag written as a takes the next word as its value.
func takesValue(flags []cli.Flag, a string) bool {
	name := strings.TrimLeft(a, "-")
	if strings.Contains(name, "=") {
		return false
	}
	doc, ok := flagOf(flags, name).(cli.DocGenerationFlag)
	return ok && doc.TakesValue()
}

// longName gives the name of a flag that is written by its short one: the flag
// package refuses lines that use both.
func longName(flags []cli.Flag, a string) string {
	short, value, given := strings.Cut(strings.TrimPrefix(a, "-"), "=")
	for _, f := range flags {
		names := f.Names()
		if strings.HasPrefix(short, "-") || !slices.Contains(names[1:], short) {
			continue
		}
		if given {
			return "--" + names[0] + "=" + value
		}
		return "--" + names[0]
	}
	return a
}

// listFlag is a flag that may be repeated.
func listFlag(name, usage string, aliases ...string) cli.Flag {
	return &cli.StringSliceFlag{Name: name, Aliases: aliases, Usage: usage}
}
