package source

import (
	"fmt"
	"math"
	"path"
	"strconv"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

// fileAttrs are the attributes of sources that are one file: what it is to be called,
// and whose it is.
type fileAttrs struct {
	filename string // empty leaves it to the source
	perm     uint32
	uid, gid uint32
}

// defaultFile is what a source gets that says nothing of its file.
var defaultFile = fileAttrs{perm: 0o600}

// set takes an attribute, and reports whether it is one of these.
func (a *fileAttrs) set(name, value string) (ours bool, err error) {
	switch name {
	case pb.AttrHTTPFilename:
		a.filename = value
	case pb.AttrHTTPPerm:
		var perm uint32
		if perm, err = parseID(value, 0o7777); perm != 0 {
			a.perm = perm
		}
	case pb.AttrHTTPUID:
		a.uid, err = parseID(value, math.MaxUint32-1)
	case pb.AttrHTTPGID:
		a.gid, err = parseID(value, math.MaxUint32-1)
	default:
		return false, nil
	}
	return true, err
}

// entry gives the file with some content.
func (a *fileAttrs) entry(name string, content blob.Digest, size int64) tree.Entry {
	return tree.Entry{Name: name, Kind: tree.File, Mode: a.perm, UID: a.uid, GID: a.gid, Size: size, Content: content}
}

func parseID(s string, limit int64) (uint32, error) {
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil || n < 0 || n > limit {
		return 0, fmt.Errorf("%q is not a number from 0 to %d", s, limit)
	}
	return uint32(n), nil
}

// safeName makes one name of what others said the name is.
func safeName(s string) string {
	s = path.Base("/" + s)
	if tree.CheckName(s) != nil {
		return "download"
	}
	return s
}

// oneFile gives the chain of one layer that holds one file, which is in the pool.
func oneFile(c *cache.Cache, e tree.Entry) (id cache.ChainID, err error) {
	var b tree.Builder
	if err := b.Set(e.Name, e); err != nil {
		return id, err
	}
	root, err := b.Root(c)
	if err != nil {
		return id, err
	}
	l := cache.Layer{ID: cache.TreeLayerID(root), Root: root, Size: e.Size}
	if err := c.PutLayer(l); err != nil {
		return id, err
	}
	return c.Extend(id, l.ID)
}
