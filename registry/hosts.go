package registry

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// HostConfig is one [registry."host"] table of the configuration file, in the
// keys of buildkitd.toml.
type HostConfig struct {
	// Mirrors are asked before the host itself, in this order: "host[:port][/path]" each.
	Mirrors   []string  `toml:"mirrors"`
	HTTP      *bool     `toml:"http"`         // plain HTTP; unset: only for loopback addresses
	Insecure  *bool     `toml:"insecure"`     // do not verify the server's certificate
	CAs       []string  `toml:"ca"`           // files, beside the system's own
	KeyPairs  []KeyPair `toml:"keypair"`      // client certificates
	ConfigDir []string  `toml:"tlsconfigdir"` // folders of *.crt (CAs), *.cert and *.key (key pairs)
}

// KeyPair names the files of a client certificate.
type KeyPair struct {
	Key  string `toml:"key"`
	Cert string `toml:"cert"`
}

// LoadHosts reads the [registry."host"] tables of a configuration file. Its other
// tables are left to others, so that a buildkitd.toml will do; an unknown key in a
// registry table is an error, since a misspelled "insecure" must not pass unseen.
// A file that does not exist wraps fs.ErrNotExist.
func LoadHosts(file string) (map[string]HostConfig, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the registry configuration: %w", err)
	}
	hosts, err := parseHosts(data)
	if err != nil {
		return nil, fmt.Errorf("reading the registry configuration %s: %w", file, err)
	}
	return hosts, nil
}

func parseHosts(data []byte) (map[string]HostConfig, error) {
	var all map[string]any
	if err := toml.Unmarshal(data, &all); err != nil {
		return nil, describeTOML(err)
	}
	tables, ok := all["registry"]
	if !ok {
		return nil, nil
	}
	only, err := toml.Marshal(map[string]any{"registry": tables})
	if err != nil {
		return nil, err
	}
	var file struct {
		Registry map[string]HostConfig `toml:"registry"`
	}
	if err := toml.NewDecoder(bytes.NewReader(only)).DisallowUnknownFields().Decode(&file); err != nil {
		return nil, describeTOML(err)
	}
	for host, c := range file.Registry {
		for _, m := range c.Mirrors {
			if _, _, err := splitMirror(m); err != nil {
				return nil, fmt.Errorf("[registry.%q]: %w", host, err)
			}
		}
	}
	return file.Registry, nil
}

// describeTOML says where in the file an error is.
func describeTOML(err error) error {
	if s, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(s.Errors) > 0 {
		return fmt.Errorf("unknown key %q", strings.Join(s.Errors[0].Key(), "."))
	}
	if d, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, col := d.Position()
		return fmt.Errorf("line %d, column %d: %w", row, col, err)
	}
	return err
}

// endpoint is a server that answers for a host.
type endpoint struct {
	host   string // "registry-1.docker.io", with a port where one was given
	base   string // the path of its API, "/v2" or "/v2/prefix"
	ns     string // the host that a mirror stands in for; empty where this is the host
	config HostConfig
}

// endpoints gives the servers that answer for a host, the host itself last.
func (c *Client) endpoints(host string) ([]endpoint, error) {
	conf := c.Hosts[host]
	var es []endpoint
	for _, m := range conf.Mirrors {
		addr, prefix, err := splitMirror(m)
		if err != nil {
			return nil, fmt.Errorf("mirror of %s: %w", host, err)
		}
		es = append(es, endpoint{host: addr, base: path.Join("/v2", prefix), ns: host, config: c.Hosts[addr]})
	}
	return append(es, c.origin(host)), nil
}

// origin gives the endpoint that is the host itself.
func (c *Client) origin(host string) endpoint {
	e := endpoint{host: host, base: "/v2", config: c.Hosts[host]}
	if host == "docker.io" {
		e.host = "registry-1.docker.io" // the name docker.io serves a website
	}
	return e
}

// splitMirror reads "host[:port][/path]". A scheme is dropped, as BuildKit drops
// it: what speaks plain HTTP is said by the mirror's own table.
func splitMirror(m string) (host, prefix string, err error) {
	if _, rest, ok := strings.Cut(m, "://"); ok {
		m = rest
	}
	u, err := url.Parse("//" + m)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", "", fmt.Errorf("mirror %q is not of the form host[:port][/path]", m)
	}
	return u.Host, path.Clean("/" + u.Path), nil
}

// scheme says how to speak to an endpoint: "http", "https", or "https" with
// fallback, that is, plain HTTP where the server turns out not to speak TLS.
func (e endpoint) scheme() (scheme string, fallback bool) {
	plain := isLoopback(e.host)
	if e.config.HTTP != nil {
		plain = *e.config.HTTP
	}
	insecure := e.config.Insecure != nil && *e.config.Insecure
	switch {
	case plain && insecure:
		return "https", true
	case plain:
		return "http", false
	}
	return "https", false
}

// isLoopback reports whether a host can only be this machine.
func isLoopback(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if strings.EqualFold(name, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(name)
	return err == nil && a.Unmap().IsLoopback()
}

// tlsConfig makes the TLS settings of an endpoint.
func (h HostConfig) tlsConfig() (*tls.Config, error) {
	cas, pairs := h.CAs, h.KeyPairs
	for _, dir := range h.ConfigDir {
		files, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			return nil, fmt.Errorf("reading tlsconfigdir: %w", err)
		}
		for _, f := range files {
			file := filepath.Join(dir, f.Name())
			switch filepath.Ext(file) {
			case ".crt":
				cas = append(cas[:len(cas):len(cas)], file)
			case ".cert":
				key := strings.TrimSuffix(file, ".cert") + ".key"
				pairs = append(pairs[:len(pairs):len(pairs)], KeyPair{Cert: file, Key: key})
			}
		}
	}
	conf := &tls.Config{InsecureSkipVerify: h.Insecure != nil && *h.Insecure}
	if len(cas) > 0 {
		roots, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("reading the system's certificates: %w", err)
		}
		conf.RootCAs = roots
	}
	for _, file := range cas {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading a CA: %w", err)
		}
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate", file)
		}
	}
	for _, p := range pairs {
		cert, err := tls.LoadX509KeyPair(p.Cert, p.Key)
		if err != nil {
			return nil, fmt.Errorf("reading the key pair %s, %s: %w", p.Cert, p.Key, err)
		}
		conf.Certificates = append(conf.Certificates, cert)
	}
	return conf, nil
}
