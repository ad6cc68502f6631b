package main

import "github.com/urfave/cli/v2"

// stateFlags are the flags of every command that opens the state folder.
func stateFlags(root, config *string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "root", Usage: "the state folder (default: " + defaultRoot() + ")", EnvVars: []string{"KILN_ROOT"}, Destination: root},
		&cli.StringFlag{Name: "config", Usage: "configuration file (default: kiln.toml in /etc/kiln or the user's configuration folder, where there is one)", EnvVars: []string{"KILN_CONFIG"}, Destination: config},
	}
}
