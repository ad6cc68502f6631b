package main

import "strings"

// The frontends' names.
const (
	dockerfileFrontend = "dockerfile.v0"
	imageFrontend      = "gateway.v0"
	programPrefix      = "exec:"
)

// frontendName checks the name of the frontend.
func (o *buildOptions) frontendName() (string, error) {
	path, program := strings.CutPrefix(o.frontend, programPrefix)
	switch {
	case program && path == "":
		return "", usagef("--frontend %s names no program: want exec:PATH", o.frontend)
	case program, o.frontend == "", o.frontend == dockerfileFrontend, o.frontend == imageFrontend:
		return o.frontend, nil
	}
	return "", usagef("--frontend %s: the frontends are dockerfile.v0, gateway.v0 and exec:PATH", o.frontend)
}

// stayHere has the build done by an engine in this process, where that is what the
// flags need: a program of this machine as a frontend, or a shell in a failed step.
func (o *buildOptions) stayHere() error {
	if err := o.openShell(); err != nil {
		return err
	}
	if !strings.HasPrefix(o.frontend, programPrefix) {
		return nil
	}
	return o.place.stayHere("--frontend " + o.frontend)
}

// stayHere makes a place that of this process, for what flag says.
func (p *place) stayHere(flag string) error {
	switch {
	case p.addr.URL != "":
		return usagef("%s needs an engine in this process, and cannot be used with the daemon at %s", flag, p.addr.URL)
	case p.daemon == daemonAlways:
		return usagef("%s needs an engine in this process, and cannot be used with --daemon=always", flag)
	}
	p.daemon = daemonNever
	return nil
}
