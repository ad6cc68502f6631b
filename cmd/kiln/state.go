package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/kiln-build/kiln"
)

// stateFlags are the flags of every command that opens the state folder.
func stateFlags(root, config *string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "root", Usage: "the state folder (default: " + kiln.DefaultRoot() + ")", EnvVars: []string{"KILN_ROOT"}, Destination: root},
		&cli.StringFlag{Name: "config", Usage: "configuration file (default: kiln.toml in /etc/kiln or the user's configuration folder, where there is one)", EnvVars: []string{"KILN_CONFIG"}, Destination: config},
	}
}

// openEngine opens the state folder, saying for whom it waits where another
// process holds it.
func openEngine(ctx context.Context, root, config string, stderr io.Writer) (*kiln.Engine, error) {
	e, err := kiln.Open(ctx, kiln.Options{
		Root: root, ConfigFile: config,
		Waiting: func(pid int, command string) {
			fmt.Fprintf(stderr, "kiln: waiting for process %d (%s), which holds the state folder\n", pid, command)
		},
		Warn: func(msg string) { fmt.Fprintf(stderr, "kiln: warning: %s\n", msg) },
	})
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, err
	}
	return e, nil
}

// closeEngine ends the engine. That the state folder could not be written is no
// failure of a build whose output is there: the next build does more than it had to.
func closeEngine(e *kiln.Engine, stderr io.Writer) {
	if err := e.Close(); err != nil {
		fmt.Fprintf(stderr, "kiln: warning: writing the state folder: %v\n", err)
	}
}
