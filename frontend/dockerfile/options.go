package dockerfile

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/sbom"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/cpuset"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/go-csvvalue"
)

const buildArgPrefix = "build-arg:"

// options is what a request asks for, read from BuildKit's attribute names.
type options struct {
	raw       map[string]string
	buildArgs map[string]string
	labels    map[string]string
	target    string
	nested    bool   // the target stands for a named context of another compilation
	request   string // a question about the Dockerfile, instead of a build

	platforms     []ocispecs.Platform // none is the machine's
	machine       ocispecs.Platform   // the worker's
	multiPlatform bool                // the result is an index, names tell platforms apart

	noCache     []string // names of stages
	noCacheAll  bool
	resolveMode string
	lint        *linter.Config // instead of the Dockerfile's own check directive
	gitAdvice   bool
	sbom        *sbom.Options // nil is none

	run runOptions
}

// runOptions is what every RUN of the build gets.
type runOptions struct {
	network      pb.NetMode
	hostname     string
	hosts        []*pb.HostIP
	shmSize      int64
	ulimits      []*pb.Ulimit
	cgroupParent string
	resources    *pb.LinuxResources
	proxy        *pb.ProxyEnv
	cacheScope   string // put in front of the ids of cache mounts
}

func parseOptions(req frontend.Request) (*options, error) {
	raw := req.Opts
	o := &options{
		raw:       raw,
		buildArgs: withPrefix(raw, buildArgPrefix),
		labels:    withPrefix(raw, "label:"),
		target:    raw["target"],
		request:   raw["requestid"],
		machine:   req.Machine,
	}
	if o.machine.OS == "" {
		o.machine = platforms.Normalize(platforms.DefaultSpec())
	}
	for _, parse := range []func() error{o.parsePlatforms, o.parseCaching, o.parseRun, o.parseLint, o.parseSBOM} {
		if err := parse(); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func (o *options) parsePlatforms() (err error) {
	if o.platforms, err = parsePlatforms(o.raw["platform"]); err != nil {
		return err
	}
	o.multiPlatform = len(o.platforms) > 1
	v := o.raw["multi-platform"]
	if arg := o.buildArgs["BUILDKIT_MULTI_PLATFORM"]; arg != "" {
		v = arg
	}
	if v == "" {
		return nil
	}
	on, err := strconv.ParseBool(v)
	if err != nil {
		return fmt.Errorf("invalid boolean value for multi-platform: %s", v)
	}
	if !on && o.multiPlatform {
		return fmt.Errorf("conflicting config: returning multiple target platforms is not allowed")
	}
	o.multiPlatform = on
	return nil
}

func (o *options) parseCaching() error {
	if v, ok := o.raw["no-cache"]; ok {
		o.noCacheAll = v == ""
		o.noCache = strings.Split(v, ",")
	}
	o.resolveMode = o.raw["image-resolve-mode"]
	switch o.resolveMode {
	case "":
		o.resolveMode = pb.AttrImageResolveModeDefault
	case pb.AttrImageResolveModeDefault, pb.AttrImageResolveModeForcePull, pb.AttrImageResolveModePreferLocal:
	default:
		return fmt.Errorf("invalid image-resolve-mode: %s", o.resolveMode)
	}
	return nil
}

// sessionOf gives the session in which a folder is by the request; empty is its own.
func (o *options) sessionOf(folder string) string { return o.raw["local-sessionid:"+folder] }

// ignoresCache reports whether a stage is to be built without looking at records.
func (o *options) ignoresCache(stage string) bool {
	if o.noCacheAll {
		return true
	}
	for _, name := range o.noCache {
		if strings.EqualFold(name, stage) {
			return true
		}
	}
	return false
}

func (o *options) parseLint() (err error) {
	if v, ok := o.buildArgs["BUILDKIT_DOCKERFILE_CHECK"]; ok {
		if o.lint, err = linter.ParseLintOptions(v); err != nil {
			return fmt.Errorf("failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK: %w", err)
		}
	}
	if v := o.buildArgs["BUILDKIT_GIT_ADVICE"]; v != "" {
		if o.gitAdvice, err = strconv.ParseBool(v); err != nil {
			return fmt.Errorf("failed to parse build-arg:BUILDKIT_GIT_ADVICE: %w", err)
		}
	}
	return nil
}

func (o *options) parseSBOM() (err error) {
	o.sbom, err = sbom.Parse(o.raw)
	return err
}

func (o *options) parseRun() (err error) {
	r := &o.run
	r.hostname = o.raw["hostname"]
	if v := o.buildArgs["BUILDKIT_SANDBOX_HOSTNAME"]; v != "" {
		r.hostname = v
	}
	r.cgroupParent = o.raw["cgroup-parent"]
	r.cacheScope = o.buildArgs["BUILDKIT_CACHE_MOUNT_NS"]
	r.proxy = proxyEnv(o.buildArgs)
	if r.network, err = parseNetwork(o.raw["force-network-mode"]); err != nil {
		return err
	}
	if r.hosts, err = parseHosts(o.raw["add-hosts"]); err != nil {
		return fmt.Errorf("failed to parse additional hosts: %w", err)
	}
	if v := o.raw["shm-size"]; v != "" {
		if r.shmSize, err = strconv.ParseInt(v, 10, 64); err != nil {
			return fmt.Errorf("failed to parse shm size: %w", err)
		}
	}
	if r.ulimits, err = parseUlimits(o.raw["ulimit"]); err != nil {
		return fmt.Errorf("failed to parse ulimit: %w", err)
	}
	if r.resources, err = parseResources(o.raw); err != nil {
		return fmt.Errorf("failed to parse resource limits: %w", err)
	}
	return nil
}

func parseNetwork(v string) (pb.NetMode, error) {
	switch v {
	case "", "sandbox":
		return pb.NetMode_UNSET, nil
	case "none":
		return pb.NetMode_NONE, nil
	case "host":
		return pb.NetMode_HOST, nil
	}
	return 0, fmt.Errorf("invalid netmode %s", v)
}

func parseHosts(v string) ([]*pb.HostIP, error) {
	var out []*pb.HostIP
	fields, err := csvFields(v)
	if err != nil {
		return nil, err
	}
	for _, field := range fields {
		host, addr, ok := strings.Cut(strings.ToLower(field), "=")
		if !ok {
			return nil, fmt.Errorf("invalid key-value pair %s", field)
		}
		ip := net.ParseIP(addr)
		if ip == nil {
			return nil, fmt.Errorf("failed to parse IP %s", addr)
		}
		out = append(out, &pb.HostIP{Host: host, IP: ip.String()})
	}
	return out, nil
}

func parseUlimits(v string) ([]*pb.Ulimit, error) {
	var out []*pb.Ulimit
	fields, err := csvFields(v)
	if err != nil {
		return nil, err
	}
	for _, field := range fields {
		u, err := units.ParseUlimit(field)
		if err != nil {
			return nil, err
		}
		out = append(out, &pb.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	return out, nil
}

func csvFields(v string) ([]string, error) {
	if v == "" {
		return nil, nil
	}
	return csvvalue.Fields(v, nil)
}

// parseResources reads the limits of a step; nil is none.
func parseResources(raw map[string]string) (*pb.LinuxResources, error) {
	r := &pb.LinuxResources{}
	set := false
	number := func(key string, least int64, into func(int64)) error {
		v := raw[key]
		if v == "" {
			return nil
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < least || n == 0 {
			return fmt.Errorf("invalid %s value: %s", key, v)
		}
		into(n)
		set = true
		return nil
	}
	cpus := func(key string, into *string) error {
		v := raw[key]
		if v == "" {
			return nil
		}
		if err := cpuset.Validate(v); err != nil {
			return fmt.Errorf("invalid %s value: %s: %w", key, v, err)
		}
		*into, set = v, true
		return nil
	}
	for _, err := range []error{
		number("memory", 1, func(n int64) { r.Memory = n }),
		// -1 is no limit on swap.
		number("memswap", -1, func(n int64) { r.MemorySwap = n }),
		number("cpushares", 1, func(n int64) { r.CpuShares = uint64(n) }),
		number("cpuperiod", 1, func(n int64) { r.CpuPeriod = uint64(n) }),
		number("cpuquota", 1, func(n int64) { r.CpuQuota = n }),
		cpus("cpusetcpus", &r.CpusetCpus),
		cpus("cpusetmems", &r.CpusetMems),
	} {
		if err != nil {
			return nil, err
		}
	}
	if !set {
		return nil, nil
	}
	return r, nil
}

// proxyEnv gathers the proxy build arguments, which steps get without their being
// declared, and which are no part of a step's identity.
func proxyEnv(args map[string]string) *pb.ProxyEnv {
	p := &pb.ProxyEnv{}
	set := false
	for _, k := range slices.Sorted(maps.Keys(args)) {
		var into *string
		switch strings.ToLower(k) {
		case "http_proxy":
			into = &p.HttpProxy
		case "https_proxy":
			into = &p.HttpsProxy
		case "ftp_proxy":
			into = &p.FtpProxy
		case "no_proxy":
			into = &p.NoProxy
		case "all_proxy":
			into = &p.AllProxy
		default:
			continue
		}
		*into, set = args[k], true
	}
	if !set {
		return nil
	}
	return p
}

// withPrefix picks the entries whose keys have a prefix, and cuts it off.
func withPrefix(m map[string]string, prefix string) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		if name, ok := strings.CutPrefix(k, prefix); ok {
			out[name] = v
		}
	}
	return out
}
