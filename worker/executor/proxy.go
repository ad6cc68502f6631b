package executor

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// proxyAddress is where a process finds its proxy. The network is its own, so that
// it is the same for all; its port is one that the kernel gives to no client.
var proxyAddress = net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 61080}

// noProxy are the hosts that a process reaches without the proxy: itself.
const noProxy = "127.0.0.1,localhost,::1"

// ownNetwork says whether the process has a network of its own.
func (s *Spec) ownNetwork() bool { return s.Network == NetworkNone || s.Proxy != nil }

// openProxy opens the socket of the process's proxy in the thread's network namespace,
// to which it belongs from then on, and tells the process of it.
func (b *box) openProxy() error {
	if b.s.Proxy == nil {
		return nil
	}
	l, err := listen(&proxyAddress)
	if err != nil {
		return fmt.Errorf("opening the proxy's socket: %w", err)
	}
	b.s.Env = withProxy(b.s.Env)
	go b.s.Proxy.Serve(l)
	return nil
}

// listen makes a listening socket by hand: package net may do so on another thread.
func listen(at *net.TCPAddr) (net.Listener, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(s), "proxy")
	defer f.Close() // the listener has a descriptor of its own
	if err := unix.Bind(s, &unix.SockaddrInet4{Port: at.Port, Addr: [4]byte(at.IP.To4())}); err != nil {
		return nil, err
	}
	if err := unix.Listen(s, unix.SOMAXCONN); err != nil {
		return nil, err
	}
	return net.FileListener(f)
}

// proxyVars are the variables that programs read proxies from; each is in small
// letters too.
var proxyVars = []struct{ name, value string }{
	{"HTTP_PROXY", "http://" + proxyAddress.String()}, {"HTTPS_PROXY", "http://" + proxyAddress.String()},
	{"ALL_PROXY", "http://" + proxyAddress.String()}, {"NO_PROXY", noProxy},
}

// withProxy gives an environment in which the proxy's variables take the place of all
// others of those names.
func withProxy(env []string) []string {
	out := slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.ContainsFunc(proxyVars, func(p struct{ name, value string }) bool {
			return name == p.name || name == strings.ToLower(p.name)
		})
	})
	for _, p := range proxyVars {
		out = append(out, p.name+"="+p.value, strings.ToLower(p.name)+"="+p.value)
	}
	return out
}
