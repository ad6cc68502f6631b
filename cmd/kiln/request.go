package main

import (
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/docker/go-units"

	"github.com/kiln-build/kiln/request"
)

// request turns the flags into what the engine takes, but for the context.
func (o *buildOptions) request() (request.Request, error) {
	r := request.Request{
		Target: o.target, Platforms: platformsOf(o.platforms), NoCache: o.noCache, NoCacheFilter: splitAll(o.noCacheFilter),
		Pull: o.pull, Ulimits: o.ulimits, CgroupParent: o.cgroupParent, Allow: splitAll(o.allow),
		ProxyNetwork: o.proxyNetwork, Attrs: map[string]string{},
	}
	err := o.attests.attrs(r.Attrs)
	if err != nil {
		return r, err
	}
	if r.BuildArgs, err = pairs("build-arg", o.buildArgs, os.LookupEnv); err != nil {
		return r, err
	}
	addProxies(r.BuildArgs)
	if r.Labels, err = pairs("label", o.labels, nil); err != nil {
		return r, err
	}
	if r.Contexts, err = pairs("build-context", o.contexts, nil); err != nil {
		return r, err
	}
	opts, err := pairs("opt", o.opts, nil)
	if err != nil {
		return r, err
	}
	maps.Copy(r.Attrs, opts)
	if r.Frontend, err = o.frontendName(); err != nil {
		return r, err
	}
	switch o.network {
	case "", "default", "host", "none":
		r.Network = o.network
	default:
		return r, usagef("--network %s: the networks are default, host and none", o.network)
	}
	if r.AddHosts, err = hosts(o.addHosts); err != nil {
		return r, err
	}
	if err := checkEntitlements("--allow", r.Allow); err != nil {
		return r, err
	}
	if r.Network == "host" {
		r.Allow = append(r.Allow, "network.host")
	}
	if o.shmSize != "" {
		if r.ShmSize, err = units.RAMInBytes(o.shmSize); err != nil || r.ShmSize <= 0 {
			return r, usagef("--shm-size %s is no size; 64m is one", o.shmSize)
		}
	}
	for _, u := range o.ulimits {
		if _, err := units.ParseUlimit(u); err != nil {
			return r, usagef("--ulimit %s: %v; nofile=1024:2048 is one", u, err)
		}
	}
	if r.Secrets, err = parseSecrets(o.secrets); err != nil {
		return r, err
	}
	if r.SSH, err = parseSSH(o.ssh); err != nil {
		return r, err
	}
	if r.CacheFrom, err = parseCaches("cache-from", o.cacheFrom); err != nil {
		return r, err
	}
	if r.CacheTo, err = parseCaches("cache-to", o.cacheTo); err != nil {
		return r, err
	}
	if inline, _ := strconv.ParseBool(r.BuildArgs["BUILDKIT_INLINE_CACHE"]); inline {
		r.CacheTo = addInline(r.CacheTo) // the name that it had before there was --cache-to
	}
	r.Outputs, err = parseOutputs(o)
	return r, err
}

// addInline adds a cache in the image itself to those that are written.
func addInline(to []request.RemoteCache) []request.RemoteCache {
	if slices.ContainsFunc(to, func(c request.RemoteCache) bool { return c.Type == "inline" }) {
		return to
	}
	return append(to, request.RemoteCache{Type: "inline"})
}

// entitlements are all that there are. One device of many is "device=NAME".
var entitlements = []string{"network.host", "security.insecure", "device"}

// checkEntitlements refuses what would grant nothing; flag is where it was said.
func checkEntitlements(flag string, names []string) error {
	for _, name := range names {
		if !slices.Contains(entitlements, name) && !strings.HasPrefix(name, "device=") {
			return usagef("%s %s: the entitlements are %s and device=NAME", flag, name, strings.Join(entitlements, ", "))
		}
	}
	return nil
}

// splitAll splits comma-separated values.
func splitAll(values []string) []string {
	var out []string
	for _, v := range values {
		for _, part := range strings.Split(v, ",") {
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
	}
	return out
}

// pairs reads NAME=VALUE words. Where env is given, NAME alone takes its value
// from there, and is left out where that has none.
func pairs(flag string, words []string, env func(string) (string, bool)) (map[string]string, error) {
	m := map[string]string{}
	for _, w := range words {
		name, value, ok := strings.Cut(w, "=")
		if name == "" {
			return nil, usagef("--%s %q: want NAME=VALUE", flag, w)
		}
		if !ok && env == nil && flag != "label" {
			return nil, usagef("--%s %q: want NAME=VALUE", flag, w)
		}
		if !ok && env != nil {
			if value, ok = env(name); !ok {
				continue
			}
		}
		m[name] = value
	}
	return m, nil
}

// platformsOf gives the platforms of --platform. "local" is this machine's, as in buildx.
func platformsOf(flags []string) []string {
	out := splitAll(flags)
	for i, p := range out {
		if p == "local" {
			out[i] = platforms.DefaultString()
		}
	}
	return out
}

// hosts reads lines of /etc/hosts, as buildx takes them: NAME=ADDRESS or NAME:ADDRESS, with
// several addresses between commas, and brackets about them where one likes.
func hosts(flags []string) ([]string, error) {
	var out []string
	for _, f := range flags {
		name, addresses, ok := strings.Cut(f, "=")
		if !ok {
			name, addresses, ok = strings.Cut(f, ":")
		}
		if !ok || name == "" {
			return nil, usagef("--add-host %s: NAME=ADDRESS is wanted", f)
		}
		if addresses == "host-gateway" {
			return nil, usagef("--add-host %s: only docker's own daemon knows a host-gateway; write the address", f)
		}
		for a := range strings.SplitSeq(addresses, ",") {
			if inner, ok := strings.CutPrefix(a, "["); ok {
				a = strings.TrimSuffix(inner, "]")
			}
			if net.ParseIP(a) == nil {
				return nil, usagef("--add-host %s: %q is no IP address", f, a)
			}
			out = append(out, name+"="+a)
		}
	}
	return out, nil
}
