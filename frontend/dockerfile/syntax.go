package dockerfile

import (
	"context"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// forward hands the build to another frontend where the request or the Dockerfile
// asks for one: BUILDKIT_SYNTAX, "# syntax=". It reports whether the build is
// done with.
func forward(ctx context.Context, b frontend.Bridge, req frontend.Request, file *llb.File) (*frontend.Result, bool, error) {
	if _, ok := req.Opts["cmdline"]; ok {
		// This is the frontend that was asked for.
		return nil, false, nil
	}
	source, cmdline, at := "", strings.TrimSpace(req.Opts[buildArgPrefix+"BUILDKIT_SYNTAX"]), []parser.Range(nil)
	if cmdline != "" {
		source, _, _ = strings.Cut(cmdline, " ")
	} else {
		var ok bool
		if source, cmdline, at, ok = parser.DetectSyntax(file.Data); !ok {
			return nil, false, nil
		}
	}
	if f, ok := b.(frontend.Forwarder); ok {
		res, taken, err := f.Forward(ctx, source, cmdline, req)
		if taken {
			return res, true, locate(file, err, at)
		}
	}
	if isOwnSyntax(source) {
		return nil, false, nil
	}
	err := fmt.Errorf("frontend image %s cannot be run here", source)
	if at == nil {
		err = fmt.Errorf("BUILDKIT_SYNTAX: %w", err)
	}
	hint := "docker/dockerfile, in any version, is built in"
	if at == nil {
		return nil, true, &Error{Err: err, Hint: hint}
	}
	return nil, true, locate(file, &hinted{err, hint}, at)
}

// isOwnSyntax reports whether a frontend image is one that this package stands for.
func isOwnSyntax(source string) bool {
	ref, err := reference.ParseNormalizedNamed(source)
	if err != nil {
		return false
	}
	return strings.HasPrefix(ref.Name(), "docker.io/docker/dockerfile")
}
