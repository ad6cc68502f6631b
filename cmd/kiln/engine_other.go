//go:build !linux

package main

import (
	"context"
	"errors"
	"io"
	"runtime"

	"github.com/urfave/cli/v2"
)

// errNeedsLinux is said of what this system has no engine for.
var errNeedsLinux = errors.New("on " + runtime.GOOS + " kiln is a client: building needs a daemon on Linux, kiln's or BuildKit's; name it with --addr or in KILN_HOST")

// defaultRoot is where a state folder is that this system cannot have.
func defaultRoot() string { return "none, but on Linux" }

// platformCommands are those that need the engine in this process.
func platformCommands() []*cli.Command {
	refuse := func(*cli.Context) error { return errNeedsLinux }
	return []*cli.Command{
		{Name: "serve", Usage: "build for BuildKit's clients (on Linux only)", SkipFlagParsing: true, Action: refuse},
	}
}

// enterUserNamespace does nothing: there are none.
func enterUserNamespace([]string) (done bool, code int, err error) { return false, 0, nil }

// platformEngine says that there is none.
func platformEngine(context.Context, place, io.Writer) (engine, error) { return nil, errNeedsLinux }
