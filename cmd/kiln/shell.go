package main

import (
	"io"
	"os"

	"golang.org/x/term"
)

// What --on-error says.
const (
	onErrorEnd   = "end"
	onErrorShell = "shell"
)

// shell is the one that people get in a step that failed.
type shell struct {
	stdin  *os.File
	stderr io.Writer
	before func() // ends the display of the progress
}

// openShell makes ready for --on-error.
func (o *buildOptions) openShell() error {
	switch o.onError {
	case "", onErrorEnd:
		return nil
	case onErrorShell:
	default:
		return usagef("--on-error %s: want end or shell", o.onError)
	}
	if err := o.place.stayHere("--on-error=shell"); err != nil {
		return err
	}
	f, ok := o.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return usagef("--on-error=shell needs a terminal on standard input")
	}
	o.place.shell = &shell{stdin: f, stderr: o.stderr}
	return nil
}
