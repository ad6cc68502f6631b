package executor

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// defaultHostname is BuildKit's: what a step notes of its host name stays the same.
const defaultHostname = "buildkitsandbox"

// names writes the resolv.conf and hosts files that steps see, each once for all
// steps with the same content. It is safe for concurrent use.
type names struct {
	dir                          string
	nameservers, search, options []string

	mu     sync.Mutex // guards what is below, and the making of files
	stamp  time.Time  // of the host's file when ours was written
	resolv map[bool]string
}

const (
	hostResolv    = "/etc/resolv.conf"
	systemdResolv = "/run/systemd/resolve/resolv.conf" // what systemd-resolved itself asks
)

// fallbackServers are asked where the host names none that a sandbox could reach, as docker does.
var fallbackServers = []string{"8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"}

// files gives the paths of the files for a spec.
func (n *names) files(s *Spec) (resolv, hosts string, err error) {
	// One at a time: a file that replaces another between its clone and its mount
	// makes the mount fail, as that of something deleted.
	n.mu.Lock()
	defer n.mu.Unlock()
	if hosts, err = n.write("hosts", hostsFile(s)); err != nil {
		return "", "", err
	}
	// Unless it has a network of its own a step reaches what listens on the host's
	// loopback, a resolver among them.
	loopback := !s.ownNetwork()
	var stamp time.Time
	if st, err := os.Stat(hostResolv); err == nil {
		stamp = st.ModTime()
	}
	if p := n.resolv[loopback]; p != "" && stamp.Equal(n.stamp) {
		return p, hosts, nil
	}
	content, err := n.resolvFile(loopback)
	if err != nil {
		return "", "", err
	}
	if resolv, err = n.write("resolv", content); err != nil {
		return "", "", err
	}
	if n.resolv == nil || !stamp.Equal(n.stamp) {
		n.resolv, n.stamp = map[bool]string{}, stamp
	}
	n.resolv[loopback] = resolv
	return resolv, hosts, nil
}

// write keeps content under its digest. It needs mu.
func (n *names) write(kind string, content []byte) (string, error) {
	sum := sha256.Sum256(content)
	p := filepath.Join(n.dir, kind+"-"+hex.EncodeToString(sum[:]))
	if _, err := os.Lstat(p); err == nil {
		return p, nil
	}
	f, err := os.CreateTemp(n.dir, "new-")
	if err != nil {
		return "", fmt.Errorf("writing the step's %s file: %w", kind, err)
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), p)
	}
	if err != nil {
		return "", fmt.Errorf("writing the step's %s file: %w", kind, errors.Join(err, os.Remove(f.Name())))
	}
	return p, nil
}

func hostsFile(s *Spec) []byte {
	host := s.Hostname
	if host == "" {
		host = defaultHostname
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "127.0.0.1\tlocalhost %s\n::1\tlocalhost ip6-localhost ip6-loopback\n", host)
	for _, h := range s.ExtraHosts {
		fmt.Fprintf(&b, "%s\t%s\n", h.IP, h.Host)
	}
	return b.Bytes()
}

// resolvFile works a resolv.conf out from the host's. Without loopback, servers
// on the host's loopback are left out, as they cannot be reached.
func (n *names) resolvFile(loopback bool) ([]byte, error) {
	host, err := os.ReadFile(hostResolv)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the host's name servers: %w", err)
	}
	if !loopback && onlyStub(host) {
		if b, err := os.ReadFile(systemdResolv); err == nil {
			host = b
		}
	}
	var b bytes.Buffer
	servers := 0
	for line := range strings.Lines(string(host)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if len(n.nameservers) > 0 || (!loopback && isLoopback(f[1])) {
				continue
			}
			servers++
		case "search", "domain":
			if len(n.search) > 0 {
				continue
			}
		case "options":
			if len(n.options) > 0 {
				continue
			}
		default:
			continue
		}
		fmt.Fprintln(&b, strings.Join(f, " "))
	}
	for _, s := range n.nameservers {
		fmt.Fprintln(&b, "nameserver", s)
		servers++
	}
	if len(n.search) > 0 {
		fmt.Fprintln(&b, "search", strings.Join(n.search, " "))
	}
	if len(n.options) > 0 {
		fmt.Fprintln(&b, "options", strings.Join(n.options, " "))
	}
	if servers == 0 {
		for _, s := range fallbackServers {
			fmt.Fprintln(&b, "nameserver", s)
		}
	}
	return b.Bytes(), nil
}

func isLoopback(server string) bool {
	a, err := netip.ParseAddr(server)
	return err == nil && a.IsLoopback()
}

// onlyStub says whether the host asks systemd-resolved and nothing else.
func onlyStub(resolv []byte) bool {
	var servers []string
	for line := range strings.Lines(string(resolv)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			servers = append(servers, f[1])
		}
	}
	return len(servers) == 1 && servers[0] == "127.0.0.53"
}
