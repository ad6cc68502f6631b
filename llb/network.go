package llb

import "github.com/moby/buildkit/solver/pb"

// Network modes of execs that reach others through the builder's proxy only. They are
// kiln's own, put into the graphs of builds that ask for the proxy network, so that
// such a step has other keys than the same one with a network of its own. A worker
// runs them for builds that asked, and for no others.
const (
	// NetModeProxy stands in the place of the default mode.
	NetModeProxy pb.NetMode = 100 + pb.NetMode_UNSET
	// NetModeProxyHost stands in the place of the host's network.
	NetModeProxyHost pb.NetMode = 100 + pb.NetMode_HOST
)

// Proxied gives the mode that stands in the place of m where a build asks for the
// proxy network. A step without a network stays without.
func Proxied(m pb.NetMode) pb.NetMode {
	switch m {
	case pb.NetMode_UNSET:
		return NetModeProxy
	case pb.NetMode_HOST:
		return NetModeProxyHost
	}
	return m
}

// Unproxied gives the mode in whose place m stands: m itself where it is no proxied one.
func Unproxied(m pb.NetMode) pb.NetMode {
	switch m {
	case NetModeProxy:
		return pb.NetMode_UNSET
	case NetModeProxyHost:
		return pb.NetMode_HOST
	}
	return m
}

// IsProxied reports whether m is a mode of the proxy network.
func IsProxied(m pb.NetMode) bool { return Unproxied(m) != m }
