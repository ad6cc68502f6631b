package main

import (
	"encoding/csv"
	"os"
	"strings"

	"github.com/kiln-build/kiln/request"
)

// parseSecrets reads --secret id=ID[,src=FILE|,env=NAME][,type=file|env]. A secret
// with neither is the environment variable of its id where that is set, else the
// file of that name.
func parseSecrets(words []string) (map[string]request.Secret, error) {
	secrets := map[string]request.Secret{}
	for _, w := range words {
		fields, err := csv.NewReader(strings.NewReader(w)).Read()
		if err != nil {
			return nil, usagef("--secret %q: %v", w, err)
		}
		var id, src, env, kind string
		for _, f := range fields {
			name, value, ok := strings.Cut(f, "=")
			if !ok {
				return nil, usagef("--secret %q: %q is not NAME=VALUE", w, f)
			}
			switch strings.ToLower(name) {
			case "id":
				id = value
			case "src", "source":
				src = value
			case "env":
				env = value
			case "type":
				kind = value
			default:
				return nil, usagef("--secret %q: there is no field %q; the fields are id, src, env and type", w, name)
			}
		}
		if id == "" {
			return nil, usagef("--secret %q: id=ID is missing", w)
		}
		if kind != "" && kind != "file" && kind != "env" {
			return nil, usagef("--secret %q: the types are file and env", w)
		}
		if kind == "env" && env == "" {
			env, src = src, ""
		}
		if env == "" && src == "" {
			if _, ok := os.LookupEnv(id); ok && kind != "file" {
				env = id
			} else {
				src = id
			}
		}
		if src != "" {
			if info, err := os.Stat(src); err != nil {
				return nil, usagef("--secret %q: %v", w, err)
			} else if info.IsDir() {
				return nil, usagef("--secret %q: %s is a folder", w, src)
			}
		}
		secrets[id] = request.Secret{Path: src, Env: env}
	}
	return secrets, nil
}

// parseSSH reads --ssh default|ID[=SOCKET|KEY[,KEY…]].
func parseSSH(words []string) (map[string]request.SSHAgent, error) {
	agents := map[string]request.SSHAgent{}
	for _, w := range words {
		id, value, _ := strings.Cut(w, "=")
		if id == "" {
			id = "default"
		}
		paths := splitAll([]string{value})
		if len(paths) == 0 {
			socket := os.Getenv("SSH_AUTH_SOCK")
			if socket == "" {
				return nil, usagef("--ssh %s: no agent is running here (SSH_AUTH_SOCK is not set); start one, or name a key file", w)
			}
			agents[id] = request.SSHAgent{Socket: socket}
			continue
		}
		info, err := os.Stat(paths[0])
		switch {
		case err != nil:
			return nil, usagef("--ssh %s: %v", w, err)
		case info.Mode()&os.ModeSocket != 0 && len(paths) > 1:
			return nil, usagef("--ssh %s: one socket, or key files", w)
		case info.Mode()&os.ModeSocket != 0:
			agents[id] = request.SSHAgent{Socket: paths[0]}
		default:
			agents[id] = request.SSHAgent{Keys: paths}
		}
	}
	return agents, nil
}
