package image

import (
	"strings"

	"github.com/kiln-build/kiln/exporter/layer"
)

// Docker's media types.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar"

	ociLayer   = "application/vnd.oci.image.layer.v1.tar"
	ociForeign = "application/vnd.oci.image.layer.nondistributable.v1.tar"
)

// suffix gives how a layer's media type says its compression: "", "+gzip", "+zstd".
func suffix(mediaType string) string {
	switch {
	case strings.HasSuffix(mediaType, "+gzip"), strings.HasSuffix(mediaType, ".gzip"):
		return "+gzip"
	case strings.HasSuffix(mediaType, "+zstd"), strings.HasSuffix(mediaType, ".zstd"):
		return "+zstd"
	}
	return ""
}

// compressionOf gives the compression that a layer's media type says.
func compressionOf(mediaType string) layer.Compression {
	switch suffix(mediaType) {
	case "+gzip":
		return layer.Gzip
	case "+zstd":
		return layer.Zstd
	}
	return layer.Uncompressed
}

// ociMediaType gives OCI's name of a layer's media type. A layer that could be
// had from its maker only becomes one like any other, as BuildKit has it too;
// what is no layer of either kind keeps its name.
func ociMediaType(mediaType string) string {
	s := suffix(mediaType)
	switch base := mediaType[:len(mediaType)-len(s)]; base {
	case dockerLayer, dockerForeign, ociLayer, ociForeign:
		return ociLayer + s
	}
	return mediaType
}

// dockerMediaType gives docker's name of an OCI layer's media type.
func dockerMediaType(mediaType string) string {
	s := suffix(mediaType)
	if mediaType[:len(mediaType)-len(s)] != ociLayer {
		return mediaType
	}
	if s == "" {
		return dockerLayer
	}
	return dockerLayer + "." + s[1:]
}
