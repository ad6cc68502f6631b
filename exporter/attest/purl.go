package attest

import (
	"fmt"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	packageurl "github.com/package-url/packageurl-go"
)

// The types of package URLs: images of registries, and of layouts.
const (
	PURLDocker = "docker"
	PURLOCI    = "oci"
)

// PURL gives the package URL of an image: its name without docker's host, its tag
// as the version, and its digest and platform, where they are known, as qualifiers.
func PURL(kind, ref string, platform *ocispecs.Platform, more ...packageurl.Qualifier) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", fmt.Errorf("image name %q: %w", ref, err)
	}
	var qualifiers packageurl.Qualifiers
	if canonical, ok := named.(reference.Canonical); ok {
		qualifiers = append(qualifiers, packageurl.Qualifier{Key: "digest", Value: canonical.Digest().String()})
	} else {
		named = reference.TagNameOnly(named)
	}
	if platform != nil {
		qualifiers = append(qualifiers, packageurl.Qualifier{Key: "platform", Value: platforms.Format(platforms.Normalize(*platform))})
	}
	version := ""
	if tagged, ok := named.(reference.Tagged); ok {
		version = tagged.Tag()
	}
	space, name := "", reference.FamiliarName(named)
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		space, name = name[:i], name[i+1:]
	}
	return packageurl.NewPackageURL(kind, space, name, version, append(qualifiers, more...), "").ToString(), nil
}
