package dockerfile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// platformSet says what is built for what.
type platformSet struct {
	target  ocispecs.Platform // of the image
	machine ocispecs.Platform // of the worker
	// implicit says that nobody asked for target; the image is then called what its
	// base is.
	implicit bool
}

func newPlatformSet(target *ocispecs.Platform, machine ocispecs.Platform) platformSet {
	if target == nil {
		return platformSet{target: machine, machine: machine, implicit: true}
	}
	return platformSet{target: *target, machine: machine}
}

func parsePlatforms(list string) ([]ocispecs.Platform, error) {
	if list == "" {
		return nil, nil
	}
	var out []ocispecs.Platform
	for s := range strings.SplitSeq(list, ",") {
		p, err := platforms.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("failed to parse target platform %s: %w", s, err)
		}
		out = append(out, platforms.Normalize(p))
	}
	return out, nil
}

// exportPlatform is the platform that the result is listed under: p, for Windows
// with what only the image knows.
func exportPlatform(p, image ocispecs.Platform) ocispecs.Platform {
	p = platforms.Normalize(p)
	if p.OS != "windows" || image.OS != p.OS {
		return p
	}
	if p.OSVersion == "" {
		p.OSVersion = image.OSVersion
	}
	if p.OSFeatures == nil && len(image.OSFeatures) > 0 {
		p.OSFeatures = slices.Clone(image.OSFeatures)
	}
	return platforms.Normalize(p)
}

// crossSuffix is what a vertex's name adds to its platform when the step, by its
// TARGET variables, works for another: "->arm64".
func crossSuffix(base ocispecs.Platform, env *environment) string {
	target, ok := targetOf(env)
	if !ok {
		return ""
	}
	if target.OS == "" {
		target.OS = base.OS
	}
	if target.Architecture == "" {
		target.Architecture = base.Architecture
	}
	p := platforms.Normalize(target)
	if p.OS != base.OS {
		return "->" + platforms.FormatAll(p)
	}
	if p.Architecture == base.Architecture {
		return ""
	}
	if p.Variant != "" {
		return "->" + p.Architecture + "/" + p.Variant
	}
	return "->" + p.Architecture
}

// targetOf reads the platform that the environment's TARGET variables name.
func targetOf(env *environment) (p ocispecs.Platform, ok bool) {
	for _, key := range env.Keys() {
		v, _ := env.Get(key)
		switch key {
		case "TARGETPLATFORM":
			if parsed, err := platforms.Parse(v); err == nil {
				return parsed, true
			}
		case "TARGETOS":
			p.OS, ok = v, true
		case "TARGETARCH":
			p.Architecture, ok = v, true
		case "TARGETVARIANT":
			p.Variant, ok = v, true
		}
	}
	return p, ok
}
