package kiln

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// loadText loads a configuration file of that text.
func loadText(t *testing.T, text string) (Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kiln.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return LoadConfig(file)
}

// TestBuildkitsConfiguration reads a file as BuildKit's documentation has it: what
// kiln has is taken, and each key that it has not is named.
func TestBuildkitsConfiguration(t *testing.T) {
	c, err := loadText(t, `
debug = true
root = "/var/lib/elsewhere"
insecure-entitlements = [ "network.host", "security.insecure", "device" ]
[log]
  format = "text"
  level = "debug"
[dns]
  nameservers = ["1.1.1.1"]
[grpc]
  address = [ "tcp://127.0.0.1:1234" ]
  debugAddress = "127.0.0.1:6060"
  uid = 0
  gid = 12
  [grpc.tls]
    cert = "/etc/buildkit/tls.crt"
    key = "/etc/buildkit/tls.key"
    ca = "/etc/buildkit/tlsca.crt"
[otel]
  socketPath = "/run/buildkit/otel-grpc.sock"
[cdi]
  disabled = true
  specDirs = ["/etc/cdi"]
  autoAllowed = ["vendor.com/class"]
[worker.oci]
  enabled = true
  platforms = [ "linux/amd64", "linux/arm64" ]
  snapshotter = "auto"
  gc = true
  reservedSpace = "30%"
  max-parallelism = 4
  [worker.oci.labels]
    "foo" = "bar"
  [[worker.oci.gcpolicy]]
    keepDuration = "48h"
    filters = [ "type==source.local" ]
[worker.containerd]
  namespace = "buildkit"
[registry."docker.io"]
  mirrors = ["mirror.example"]
[frontend."dockerfile.v0"]
  enabled = true
[frontend."gateway.v0"]
  enabled = true
  allowedRepositories = ["docker-registry.example/frontends"]
`)
	if err != nil {
		t.Fatal(err)
	}
	if c.Root != "/var/lib/elsewhere" || !c.Debug || c.GRPC.TLS.CA != "/etc/buildkit/tlsca.crt" || *c.GRPC.GID != 12 {
		t.Errorf("got %+v", c)
	}
	if got := c.Worker.OCI; got.MaxParallelism != 4 || got.ReservedSpace.Percent != 30 || len(got.Policies) != 1 || got.Policies[0].KeepDuration.Duration != 48*time.Hour {
		t.Errorf("got the worker %+v", got)
	}
	if got := c.Frontends.Gateway.AllowedRepositories; !reflect.DeepEqual(got, []string{"docker-registry.example/frontends"}) {
		t.Errorf("got the repositories %v", got)
	}
	if len(c.Unknown) > 0 {
		t.Errorf("keys of BuildKit's are unknown: %v", c.Unknown)
	}
	if got := c.CDI; !got.Disabled || len(got.SpecDirs) != 1 || len(got.AutoAllowed) != 1 {
		t.Errorf("got the devices %+v", got)
	}
	all := strings.Join(c.Ignored, "\n")
	for _, key := range []string{"log.format", "otel", "worker.oci.platforms", "worker.oci.snapshotter", "worker.oci.labels", "worker.containerd"} {
		if !strings.Contains(all, ": "+key) {
			t.Errorf("%s is not named; got\n%s", key, all)
		}
	}
}

func TestUnknownKeys(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"[worker.oci]\nmax-paralelism = 4\n", "line 2: there is no key worker.oci.max-paralelism; did you mean worker.oci.max-parallelism?"}, // a typo
		{"max-parallelism = 4\n", "line 1: there is no key max-parallelism; did you mean worker.oci.max-parallelism?"},                        // the wrong table
		{"[[worker.oci.gcpolicy]]\nkeepDurations = 4\n", "line 2: there is no key worker.oci.gcpolicy.keepDurations; did you mean worker.oci.gcpolicy.keepDuration?"},
		{"nothingLikeIt = 4\n", "line 1: there is no key nothingLikeIt"},
	} {
		c, err := loadText(t, tt.text)
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
			continue
		}
		if got := strings.Join(c.Unknown, "\n"); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.text, got, tt.want)
		}
	}
	if _, err := loadText(t, "[worker.oci]\nenabled = false\n"); err == nil {
		t.Error("a configuration without any worker is taken")
	}
}
