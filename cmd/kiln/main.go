// Command kiln builds container images.
//
// Each subcommand stands in a file of its own: newXCommand wires its flags to an
// options struct, and runX does the work.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kiln-build/kiln/explain"
)

// version is set by the linker.
var version = "unknown"

// Exit codes; exitHelp lists them for people.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitMissed      = 3
	exitInterrupted = 130
)

const exitHelp = `Exit codes:
   0    done
   1    the build or the command failed, and the reason is on standard error; or
        a check (--check) found something
   2    the command line is wrong
   3    a step ran that was to be cached (--fail-on-miss)
   130  interrupted (Ctrl-C, SIGTERM)`

// signalEcho is how long after a signal another counts as the same one.
const signalEcho = 300 * time.Millisecond

// errInterrupted is the cause of a context that a signal ended.
var errInterrupted = errors.New("interrupted")

// usageError is an error in the command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() {
	setHeapFloor()
	if done, code, err := enterUserNamespace(os.Args); done || err != nil {
		if err != nil {
			code = exitCode(err, os.Stderr)
		}
		os.Exit(code)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel(errInterrupted)
		// A second time, somebody does not want to wait for the cleaning up. A
		// terminal's signal can come twice by itself: passed on by the process
		// outside of a user namespace.
		for first := time.Now(); time.Since(first) < signalEcho; {
			<-signals
		}
		os.Exit(exitInterrupted)
	}()
	os.Exit(exitCode(run(ctx, os.Args, os.Stdout, os.Stderr), os.Stderr))
}

// statusError ends the process with a code where all has been said.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("ended with status %d", int(e)) }

// run is the whole program but for signals and the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	app := newApp(stdout, stderr)
	args, err := interspersed(app, args)
	if err != nil {
		return err
	}
	var unknown error
	app.CommandNotFound = func(_ *cli.Context, name string) { unknown = noCommand(name) } // of `kiln help NAME`
	if err := app.RunContext(ctx, args); err != nil {
		return err
	}
	return unknown
}

func noCommand(name string) error {
	return usagef("kiln has no command %q; `kiln help` lists them", name)
}

// instead says what to write for flags of `docker buildx build` that kiln has not.
var instead = map[string]string{
	"load":        "write -o type=docker,dest=- | docker load",
	"builder":     "--addr names the daemon to build at",
	"compress":    "contexts of this machine are read in place",
	"squash":      "COPY the files into a stage FROM scratch",
	"memory":      "--opt memory=BYTES bounds the steps",
	"m":           "--opt memory=BYTES bounds the steps",
	"memory-swap": "--opt memswap=BYTES bounds the steps",
	"cpu-period":  "--opt cpuperiod=MICROSECONDS bounds the steps",
	"cpu-quota":   "--opt cpuquota=MICROSECONDS bounds the steps",
	"cpu-shares":  "--opt cpushares=NUMBER bounds the steps",
	"c":           "--opt cpushares=NUMBER bounds the steps",
	"cpuset-cpus": "--opt cpusetcpus=LIST bounds the steps",
	"cpuset-mems": "--opt cpusetmems=LIST bounds the steps",
	"rm":          "nothing of a build is left that would have to be removed",
	"force-rm":    "nothing of a build is left that would have to be removed",
	"debug":       "--on-error shell opens a shell where a step failed",
	"D":           "--on-error shell opens a shell where a step failed",
	"resource":    "--opt memory=BYTES and the like bound the steps",
	"isolation":   "steps have kiln's own sandbox, or worker.oci.binary's in kiln.toml",
}

// unknownFlag is what the flag package says of a flag that is not there, before its name.
const unknownFlag = "flag provided but not defined: -"

// usage makes of what the flag package says an error that says what to do.
func usage(c *cli.Context, err error, _ bool) error {
	name, unknown := strings.CutPrefix(err.Error(), unknownFlag)
	if !unknown {
		return usageError{err}
	}
	dashes := "--"
	if len(name) == 1 {
		dashes = "-"
	}
	advice := fmt.Sprintf("`%s --help` lists the flags", c.Command.HelpName)
	if other := instead[name]; other != "" && c.Command.Name == "build" {
		advice = other
	}
	return usagef("there is no flag %s%s: %s", dashes, name, advice)
}

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:                   "kiln",
		Usage:                  "build container images",
		Description:            exitHelp,
		Version:                version,
		HideVersion:            true,
		UseShortOptionHandling: true,
		// Build args and outputs hold commas of their own.
		DisableSliceFlagSeparator: true,
		Writer:                    stdout,
		ErrWriter:                 stderr,
		ExitErrHandler:            func(*cli.Context, error) {}, // exitCode does it
		OnUsageError:              usage,
		Commands: []*cli.Command{
			newBuildCommand(),
			newDiskUsageCommand(),
			newPruneCommand(),
			newExplainCommand(),
			newDebugCommand(),
			newVersionCommand(),
		},
	}
	app.Commands = slices.Insert(app.Commands, 5, platformCommands()...)
	app.Action = func(c *cli.Context) error {
		if c.NArg() > 0 {
			return noCommand(c.Args().First())
		}
		return cli.ShowAppHelp(c)
	}
	for _, cmd := range app.Commands {
		cmd.OnUsageError = app.OnUsageError
		cmd.HideHelpCommand = len(cmd.Subcommands) == 0 // help may be the name of a context
		for _, sub := range cmd.Subcommands {
			sub.OnUsageError, sub.HideHelpCommand = app.OnUsageError, true
		}
	}
	return app
}

// exitCode says what went wrong, once, and which code the process ends with.
func exitCode(err error, stderr io.Writer) int {
	var usage usageError
	var status statusError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errInterrupted), errors.Is(err, context.Canceled):
		fmt.Fprintln(stderr, "kiln: interrupted")
		return exitInterrupted
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "kiln: %v\n", err)
		return exitUsage
	case explain.IsMissed(err):
		fmt.Fprintf(stderr, "kiln: %v\n", err)
		return exitMissed
	default:
		fmt.Fprintf(stderr, "kiln: %v\n", err)
		return exitFailed
	}
}
