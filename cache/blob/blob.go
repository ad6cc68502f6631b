// Package blob holds bytes under their sha256: image manifests, configs and
// compressed layers, laid out as an OCI layout's blobs folder is.
package blob

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Digest is the sha256 of some bytes: of a blob, or of a file's content.
type Digest [sha256.Size]byte

// String gives the digest as OCI writes it, "sha256:" and 64 hex digits.
func (d Digest) String() string { return "sha256:" + hex.EncodeToString(d[:]) }

// IsZero reports whether d is unset.
func (d Digest) IsZero() bool { return d == Digest{} }

// Parse reads what String writes. Other algorithms than sha256 are an error.
func Parse(s string) (Digest, error) {
	var d Digest
	h, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(h) != 2*len(d) {
		return d, fmt.Errorf("blob: %q is not a sha256 digest", s)
	}
	if _, err := hex.Decode(d[:], []byte(h)); err != nil {
		return d, fmt.Errorf("blob: %q is not a sha256 digest: %w", s, err)
	}
	return d, nil
}
