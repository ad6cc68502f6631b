package registry

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseReference(t *testing.T) {
	const hex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, test := range []struct{ in, want string }{
		{"debian", "docker.io/library/debian:latest"},
		{"debian:12", "docker.io/library/debian:12"},
		{"index.docker.io/debian", "docker.io/library/debian:latest"},
		{"me/app", "docker.io/me/app:latest"},
		{"localhost/app", "localhost/app:latest"},
		{"127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c"},
		{"ghcr.io/a/b@sha256:" + hex, "ghcr.io/a/b@sha256:" + hex},
		{"debian:12@sha256:" + hex, "docker.io/library/debian:12@sha256:" + hex},
		{"[::1]:5000/app", "[::1]:5000/app:latest"},
		{"Debian", ""},
		{"a b", ""},
		{"", ""},
		{"app:" + strings.Repeat("t", 129), ""},
		{"app@sha512:" + hex + hex, ""},
		{"../app", ""},
		{"host/../app", ""},
		{hex, ""},
	} {
		r, err := ParseReference(test.in)
		if err != nil {
			if test.want != "" || !strings.Contains(err.Error(), test.in[:min(len(test.in), 20)]) {
				t.Errorf("%q: %v", test.in, err)
			}
			continue
		}
		if r.String() != test.want {
			t.Errorf("%q: got %q, want %q", test.in, r, test.want)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	f.Add("debian:12")
	f.Add("a.b:1/c@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(r.String())
		if err != nil || again != r {
			t.Errorf("%q is %+v, and %q is %+v, %v", s, r, r.String(), again, err)
		}
	})
}

func TestLoadHosts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "buildkitd.toml")
	const text = `
debug = true
[worker.oci]
  enabled = true
[registry."docker.io"]
  mirrors = ["mirror.example:5000", "https://other.example/hub/"]
[registry."mirror.example:5000"]
  http = true
  insecure = true
  ca = ["/a.crt", "/b.crt"]
  tlsconfigdir = ["/etc/certs"]
  [[registry."mirror.example:5000".keypair]]
    key = "/k"
    cert = "/c"
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	hosts, err := LoadHosts(file)
	if err != nil {
		t.Fatal(err)
	}
	m := hosts["mirror.example:5000"]
	if m.HTTP == nil || !*m.HTTP || m.Insecure == nil || !*m.Insecure || len(m.CAs) != 2 || len(m.ConfigDir) != 1 || m.KeyPairs[0] != (KeyPair{Key: "/k", Cert: "/c"}) {
		t.Errorf("got %+v", m)
	}
	es, err := (&Client{Hosts: hosts}).endpoints("docker.io")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range es {
		scheme, fallback := e.scheme()
		got = append(got, scheme+"://"+e.host+e.base)
		if fallback != (e.host == "mirror.example:5000") {
			t.Errorf("%s: fallback is %v", e.host, fallback)
		}
	}
	want := "https://mirror.example:5000/v2 https://other.example/v2/hub https://registry-1.docker.io/v2"
	if strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, test := range []struct{ text, want string }{
		{"[registry.\"a\"]\ninsecrue = true", "insecrue"},
		{"[registry.\"a\"]\nmirrors = [\"b/c?d\"]", "mirror"},
		{"[registry.\"a\"]\nmirrors = [\"user:pw@b\"]", "mirror"},
		{"[registry", "line 1"},
		{"[registry.\"a\"]\nhttp = \"yes\"", "line"},
	} {
		if _, err := parseHosts([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: got %v, want it to say %q", test.text, err, test.want)
		}
	}
	if _, err := LoadHosts(file + ".not"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestSchemes(t *testing.T) {
	yes, no := true, false
	for _, test := range []struct {
		host     string
		config   HostConfig
		want     string
		fallback bool
	}{
		{host: "127.0.0.1:5000", want: "http"},
		{host: "127.9.9.9", want: "http"},
		{host: "localhost:5000", want: "http"},
		{host: "[::1]:5000", want: "http"},
		{host: "localhost.example", want: "https"},
		{host: "10.0.0.1:5000", want: "https"},
		{host: "localhost:5000", config: HostConfig{HTTP: &no}, want: "https"},
		{host: "a.example", config: HostConfig{HTTP: &yes}, want: "http"},
		{host: "a.example", config: HostConfig{Insecure: &yes}, want: "https"},
		{host: "a.example", config: HostConfig{Insecure: &yes, HTTP: &yes}, want: "https", fallback: true},
	} {
		got, fallback := endpoint{host: test.host, config: test.config}.scheme()
		if got != test.want || fallback != test.fallback {
			t.Errorf("%s, %+v: got %s, %v", test.host, test.config, got, fallback)
		}
	}
}
