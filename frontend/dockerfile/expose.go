package dockerfile

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
)

// expose is EXPOSE. Of the form of docker run's --publish, which it takes for
// historical reasons, only the container's ports matter.
func (l *line) expose(c *instructions.ExposeCommand) error {
	var specs []string
	for _, p := range c.Ports {
		m := l.budget.meter(l.stage.state.env, p)
		words, err := l.lex.ProcessWords(p, m)
		if err == nil {
			err = m.err()
		}
		if err != nil {
			return err
		}
		specs = append(specs, words...)
	}
	var ports []string
	for _, s := range specs {
		p, err := parsePort(s)
		if err != nil {
			return err
		}
		l.checkPort(c, p)
		if err := l.budget.addPorts(p.last - p.first + 1); err != nil {
			return err
		}
		ports = append(ports, p.list()...)
	}
	img := l.stage.state.image
	if img.Config.ExposedPorts == nil {
		img.Config.ExposedPorts = map[string]struct{}{}
	}
	for _, p := range ports {
		img.Config.ExposedPorts[p] = struct{}{}
	}
	l.commit(fmt.Sprintf("EXPOSE %v", ports), false)
	return nil
}

// port is an argument of EXPOSE: a port or a range, and what is ignored.
type port struct {
	spec, proto string
	first, last int
	hasHost     bool
}

func (p port) list() []string {
	var out []string
	for n := p.first; n <= p.last; n++ {
		out = append(out, strconv.Itoa(n)+"/"+strings.ToLower(p.proto))
	}
	return out
}

func (l *line) checkPort(c instructions.Command, p port) {
	if p.proto != strings.ToLower(p.proto) {
		l.lint.Run(&linter.RuleExposeProtoCasing, c.Location(), linter.RuleExposeProtoCasing.Format(p.spec))
	}
	if p.hasHost {
		l.lint.Run(&linter.RuleExposeInvalidFormat, c.Location(), linter.RuleExposeInvalidFormat.Format(p.spec))
	}
}

// parsePort reads "[[ip:]host:]ports[/protocol]", ports being a number or a range.
func parsePort(spec string) (port, error) {
	ip, host, container := splitPort(spec)
	numbers, proto, _ := strings.Cut(container, "/")
	p := port{spec: spec, proto: proto, hasHost: ip != "" || host != ""}
	if numbers == "" {
		return p, fmt.Errorf("invalid port: %q: no port specified", spec)
	}
	switch strings.ToLower(proto) {
	case "":
		p.proto = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return p, fmt.Errorf("invalid port: %q: invalid proto: %s", spec, proto)
	}
	if err := checkPortIP(ip); err != nil {
		return p, err
	}
	var err error
	if p.first, p.last, err = parsePortRange(numbers); err != nil {
		return p, fmt.Errorf("invalid containerPort: %s", numbers)
	}
	if host == "" {
		return p, nil
	}
	first, last, err := parsePortRange(host)
	if err != nil {
		return p, fmt.Errorf("invalid hostPort: %s", host)
	}
	if last-first != p.last-p.first && p.first != p.last {
		return p, fmt.Errorf("invalid ranges specified for container and host Ports: %s and %s", numbers, host)
	}
	return p, nil
}

func splitPort(spec string) (ip, host, container string) {
	parts := strings.Split(spec, ":")
	n := len(parts)
	switch n {
	case 1:
		return "", "", parts[0]
	case 2:
		return "", parts[0], parts[1]
	}
	// An address of IPv6 has colons itself.
	return strings.Join(parts[:n-2], ":"), parts[n-2], parts[n-1]
}

func checkPortIP(ip string) error {
	if ip == "" {
		return nil
	}
	if ip[0] == '[' {
		bare, _, err := net.SplitHostPort(ip + ":")
		if err != nil {
			return fmt.Errorf("invalid IP address %v: %w", ip, err)
		}
		ip = bare
	}
	if ip != "" && net.ParseIP(ip) == nil {
		return errors.New("invalid IP address: " + ip)
	}
	return nil
}

func parsePortRange(s string) (first, last int, err error) {
	from, to, isRange := strings.Cut(s, "-")
	if first, err = parsePortNumber(from); err != nil {
		return 0, 0, err
	}
	if !isRange || from == to {
		return first, first, nil
	}
	if last, err = parsePortNumber(to); err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, fmt.Errorf("invalid port range: %s", s)
	}
	return first, last, nil
}

func parsePortNumber(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 65535 {
		return 0, fmt.Errorf("invalid port %q", s)
	}
	return n, nil
}
