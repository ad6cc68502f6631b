package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// listValue collects a repeated flag word by word. The flag package's own slices
// split words at commas, which build args and outputs may hold.
type listValue []string

func (l *listValue) Set(s string) error { *l = append(*l, s); return nil }
func (l *listValue) String() string     { return strings.Join(*l, " ") }

// listFlag is a flag that may be repeated.
type listFlag struct{ cli.GenericFlag }

// GetDefaultText keeps the help from showing an empty list as a default.
func (f *listFlag) GetDefaultText() string { return "" }
