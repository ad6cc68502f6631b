package main

import (
	"context"

	"github.com/kiln-build/kiln/daemon/gateway"
	"github.com/kiln-build/kiln/frontend"
)

// frontendOf gives the frontend of a name that was checked; nil is that of Dockerfiles.
func frontendOf(name string) frontend.Frontend {
	if path, ok := gateway.ProgramOf(name); ok {
		return gateway.FromProgram{Path: path, Workers: gateway.LocalWorkers()}
	}
	if name == imageFrontend {
		return gateway.FromImage{Workers: gateway.LocalWorkers()}
	}
	return nil
}

// forward runs the frontends that Dockerfiles ask for by "# syntax=".
func forward(ctx context.Context, b frontend.Bridge, source, cmdline string, req frontend.Request) (*frontend.Result, bool, error) {
	return gateway.FromImage{Workers: gateway.LocalWorkers()}.Forward(ctx, b, source, cmdline, req)
}
