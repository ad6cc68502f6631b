package remote

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/docker/cli/cli/config"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"

	"github.com/kiln-build/kiln/request"
)

// lend gives what the session lends besides folders and outputs.
func lend(r *request.Request) ([]session.Attachable, error) {
	file, err := config.Load(config.Dir())
	if err != nil {
		return nil, fmt.Errorf("reading docker's configuration: %w", err)
	}
	out := []session.Attachable{authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
		AuthConfigProvider: authprovider.LoadAuthConfig(file),
	})}
	if len(r.Secrets) > 0 {
		out = append(out, secretsprovider.NewSecretProvider(secretStore(r.Secrets)))
	}
	if len(r.SSH) > 0 {
		var agents []sshprovider.AgentConfig
		for _, id := range slices.Sorted(maps.Keys(r.SSH)) {
			a := sshprovider.AgentConfig{ID: id, Paths: r.SSH[id].Keys}
			if len(a.Paths) == 0 && r.SSH[id].Socket != "" {
				a.Paths = []string{r.SSH[id].Socket}
			}
			agents = append(agents, a)
		}
		provider, err := sshprovider.NewSSHAgentProvider(agents)
		if err != nil {
			return nil, err
		}
		out = append(out, provider)
	}
	return out, nil
}

// secretStore reads secrets at the time that they are asked for.
type secretStore map[string]request.Secret

// GetSecret reads one.
func (s secretStore) GetSecret(_ context.Context, id string) ([]byte, error) {
	secret, ok := s[id]
	switch {
	case !ok:
		return nil, fmt.Errorf("secret %s: %w", id, secrets.ErrNotFound)
	case secret.Env != "":
		v, ok := os.LookupEnv(secret.Env)
		if !ok {
			return nil, fmt.Errorf("secret %s: the environment variable %s is not set: %w", id, secret.Env, secrets.ErrNotFound)
		}
		return []byte(v), nil
	case secret.Path != "":
		return os.ReadFile(secret.Path)
	}
	return secret.Value, nil
}

// export puts an output into the terms of BuildKit's client.
func export(o request.Output) (client.ExportEntry, error) {
	x := client.ExportEntry{Type: o.Type, Attrs: maps.Clone(o.Attrs)}
	if x.Attrs == nil {
		x.Attrs = map[string]string{}
	}
	switch o.Type {
	case "registry":
		x.Type, x.Attrs["push"] = client.ExporterImage, "true"
	case client.ExporterLocal:
		x.OutputDir = o.Dest
	case client.ExporterOCI, client.ExporterDocker, client.ExporterTar:
		if x.Attrs["tar"] == "false" {
			if o.Writer != nil || o.Dest == "" {
				return x, fmt.Errorf("output %s: tar=false needs dest=FOLDER", o.Type)
			}
			x.OutputDir = o.Dest
			return x, nil
		}
		x.Output = writer(o)
	}
	return x, nil
}

// writer gives where a tarball goes. The file is made when the daemon begins to
// send, so that a build that fails leaves the one of before.
func writer(o request.Output) filesync.FileOutputFunc {
	return func(map[string]string) (io.WriteCloser, error) {
		if o.Writer != nil {
			return unclosed{o.Writer}, nil
		}
		return os.Create(o.Dest)
	}
}

// unclosed is a writer that stays open, as standard output does.
type unclosed struct{ io.Writer }

func (unclosed) Close() error { return nil }
