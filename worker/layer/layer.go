// Package layer moves layers between their forms: the tree that the cache knows
// them by, the folder that overlayfs mounts, and the tar stream that registries
// hold.
//
// A folder is in overlayfs form: what the layer removes is a character device
// 0:0, a directory through which nothing below shows carries the xattr
// trusted.overlay.opaque (user.overlay.opaque inside a user namespace). Its files
// are links into the pool, so a folder costs directories and no data. Folder
// makes one of a tree, Adopt makes a tree of one, and the two are inverse.
package layer

import "strings"

// TagOf makes the tag of a file that enters the pool at path, an absolute path
// in the root file system that it becomes part of. It is 64-bit FNV-1a: equal
// files at different paths must differ, and nothing more is asked of it.
func TagOf(path string) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	path = strings.TrimPrefix(path, "/")
	for i := 0; i < len(path); i++ {
		h = (h ^ uint64(path[i])) * prime
	}
	return h
}

// KeepXattr reports whether trees hold the extended attribute called name. Left
// out are those that belong to this machine and not to the file: labels and
// signatures of its security modules, overlayfs's own notes, and macOS's.
func KeepXattr(name string) bool {
	switch {
	case name == "security.capability":
		return true
	case strings.HasPrefix(name, "security."),
		strings.HasPrefix(name, overlayTrusted),
		strings.HasPrefix(name, overlayUser),
		strings.HasPrefix(name, "com.apple."):
		return false
	}
	return true
}

// The prefixes of overlayfs's own attributes, as root and in a user namespace.
const (
	overlayTrusted = "trusted.overlay."
	overlayUser    = "user.overlay."
)
