package kiln

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
)

// platformsKey is where a frontend lists the platforms of its images.
const platformsKey = "refs.platforms"

// warnPlatforms tells the user where the platforms of a result are not those that
// were asked for: a frontend is free to make what it likes of the request.
func (b *build) warnPlatforms(opts map[string]string, r *frontend.Result) {
	for _, w := range platformWarnings(opts["platform"], r) {
		b.warn(w)
	}
}

// platformWarnings compares a result with the platforms that were asked for; none is
// the machine's. The words are BuildKit's, as clients may look for them.
func platformWarnings(asked string, r *frontend.Result) []string {
	if _, listed := r.Metadata[platformsKey]; !listed && !slices.ContainsFunc(r.Images, func(i frontend.ResultImage) bool { return !i.Root.IsScratch() }) {
		return nil // nothing was made
	}
	want, warnings := parseAsked(asked)
	if len(warnings) > 0 {
		return warnings
	}
	var got []ocispecs.Platform
	for _, image := range r.Images {
		got = append(got, platforms.Normalize(image.Platform))
	}
	switch {
	case len(want) == 1 && len(got) == 1:
		if !satisfies(got[0], want) {
			if asked == "" {
				asked = platforms.FormatAll(want[0])
			}
			return []string{fmt.Sprintf("Requested platform %q does not match result platform %q", asked, platforms.FormatAll(got[0]))}
		}
	case len(got) == 1 && !r.Index:
		return []string{"Multiple platforms requested but result is not multi-platform"}
	case len(want) != len(got) || slices.ContainsFunc(got, func(p ocispecs.Platform) bool { return !satisfies(p, want) }):
		return []string{fmt.Sprintf("Requested platforms %s do not match result platforms %s", listPlatforms(want), listPlatforms(got))}
	}
	return nil
}

// parseAsked reads the platforms of a request, and tells of those that are none, or
// that it has twice.
func parseAsked(asked string) (want []ocispecs.Platform, warnings []string) {
	if asked == "" {
		return []ocispecs.Platform{platforms.Normalize(platforms.DefaultSpec())}, nil
	}
	seen := map[string]bool{}
	for text := range strings.SplitSeq(asked, ",") {
		p, err := platforms.Parse(text)
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("Invalid platform result requested %q: %v", text, err))
			continue
		}
		p = platforms.Normalize(p)
		if name := platforms.FormatAll(p); seen[name] {
			warnings = append(warnings, fmt.Sprintf("Duplicate platform result requested %q", text))
		} else {
			seen[name] = true
		}
		want = append(want, p)
	}
	return want, warnings
}

// satisfies reports whether a platform is one of those that were asked for. A version
// of the system that the image knows, and the request left open, is no difference.
func satisfies(p ocispecs.Platform, want []ocispecs.Platform) bool {
	return slices.ContainsFunc(want, func(w ocispecs.Platform) bool {
		open := p
		if w.OSVersion == "" {
			open.OSVersion = ""
		}
		return platforms.FormatAll(open) == platforms.FormatAll(w) || platforms.OnlyStrict(w).Match(p)
	})
}

func listPlatforms(list []ocispecs.Platform) string {
	var names []string
	for _, p := range list {
		names = append(names, platforms.FormatAll(p))
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}
