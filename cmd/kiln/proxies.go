package main

import (
	"strings"

	"github.com/docker/cli/cli/config"
)

// addProxies gives a build the proxies that docker's configuration names for all builds,
// as docker's clients do, but for those that its arguments name themselves. A
// configuration that cannot be read names none: who needs a login in it says why.
func addProxies(args map[string]string) {
	file, err := config.Load(config.Dir())
	if err != nil {
		return
	}
	given := map[string]bool{}
	for name := range args {
		given[strings.ToUpper(name)] = true
	}
	for name, value := range file.ParseProxyConfig("default", nil) {
		if !given[strings.ToUpper(name)] {
			args[name] = *value
		}
	}
}
