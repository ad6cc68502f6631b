package solver

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// keyVersion goes into every key. It changes when what a key covers changes, and
// makes every record of before a miss.
const keyVersion = "kiln key 1"

// opKey is the identity of what a vertex does, its inputs left out.
type opKey [sha256.Size]byte

// keyOf makes the opKey of v: the hash of its op, without what cannot change its
// result. That is, of an exec, the proxies and the addresses of extra hosts, which
// differ between networks. Of a source it is the name, where the pin says all:
// a folder's tree, an image's digest.
func keyOf(v *llb.Vertex) opKey {
	switch o := v.Op().Op.(type) {
	case *pb.Op_Source:
		return sourceKey(v.Op(), o.Source)
	case *pb.Op_Exec:
		if o.Exec.Meta.ProxyEnv != nil || len(o.Exec.Meta.ExtraHosts) > 0 {
			return execKey(v)
		}
	}
	return hashBody("op", v.Raw())
}

// hashBody hashes a marshalled op but for its inputs. A field is hashed as its
// bytes are: an op that two clients marshal differently is two ops.
func hashBody(kind string, raw []byte) opKey {
	const inputsField = 1
	h := newHash(kind)
	for rest := raw; len(rest) > 0; {
		num, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			// Not to be met: the bytes were unmarshalled once. Hash what is left.
			h.bytes(rest)
			break
		}
		if num != inputsField {
			h.Write(rest[:n])
		}
		rest = rest[n:]
	}
	return opKey(h.sum())
}

func execKey(v *llb.Vertex) opKey {
	c := v.Op().CloneVT()
	c.Inputs = nil
	meta := c.GetExec().Meta
	meta.ProxyEnv = nil
	for _, h := range meta.ExtraHosts {
		h.IP = ""
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		// Not to be met: the op was marshalled once. Its own bytes are a key too.
		raw = v.Raw()
	}
	return hashBody("exec", raw)
}

// freeAttrs are attributes of sources that say how to get at them, not what they are.
var freeAttrs = map[string]bool{
	pb.AttrImageResolveMode:     true,
	pb.AttrImageRecordType:      true,
	pb.AttrOCILayoutSessionID:   true,
	pb.AttrOCILayoutStoreID:     true,
	pb.AttrAuthHeaderSecret:     true,
	pb.AttrAuthTokenSecret:      true,
	pb.AttrKnownSSHHosts:        true,
	pb.AttrMountSSHSock:         true,
	pb.AttrFullRemoteURL:        true,
	pb.AttrHTTPAuthHeaderSecret: true,
}

func sourceKey(op *pb.Op, o *pb.SourceOp) opKey {
	scheme, rest, _ := strings.Cut(o.Identifier, "://")
	h := newHash("source")
	h.str(scheme)
	switch scheme {
	case "local":
		// The pin is the identity of the tree, filters applied.
		return opKey(h.sum())
	case "docker-image", "oci-layout":
		// The pin is a digest; which name it was found under does not matter.
	default:
		h.str(rest)
	}
	if p := op.Platform; p != nil {
		h.str(p.OS)
		h.str(p.Architecture)
		h.str(p.Variant)
		h.str(p.OSVersion)
	}
	names := make([]string, 0, len(o.Attrs))
	for name := range o.Attrs {
		if !freeAttrs[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		h.str(name)
		h.str(o.Attrs[name])
	}
	return opKey(h.sum())
}

// definitionKey is H(op, pin, definition keys of the inputs with output indexes).
func definitionKey(op opKey, pin string, inputs func(yield func(cache.Key, int) bool)) cache.Key {
	h := newHash("definition")
	h.Write(op[:])
	h.str(pin)
	for k, output := range inputs {
		h.Write(k[:])
		h.num(uint64(output))
	}
	return cache.Key(h.sum())
}

// freshKey is the share key of a vertex that must not use what was made from
// records: it, or vertices below it, are to be run whatever the cache holds. It
// covers which ones, so that two builds only share what both want run anew.
func freshKey(definition cache.Key, ignore bool, inputs func(yield func(cache.Key, int) bool)) cache.Key {
	h := newHash("fresh")
	h.Write(definition[:])
	if ignore {
		h.num(1)
	} else {
		h.num(0)
	}
	for k := range inputs {
		h.Write(k[:])
	}
	return cache.Key(h.sum())
}

// contentKey is H(op, what it sees of each input).
func contentKey(op opKey, inputs []cache.ContentID) cache.Key {
	h := newHash("content")
	h.Write(op[:])
	for _, c := range inputs {
		h.Write(c[:])
	}
	return cache.Key(h.sum())
}

// keyHash hashes fields so that none can run into the next.
type keyHash struct{ hash.Hash }

func newHash(kind string) keyHash {
	h := keyHash{sha256.New()}
	h.str(keyVersion)
	h.str(kind)
	return h
}

func (h keyHash) num(n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	h.Write(b[:])
}

func (h keyHash) bytes(b []byte) {
	h.num(uint64(len(b)))
	h.Write(b)
}

func (h keyHash) str(s string) { h.bytes([]byte(s)) }

func (h keyHash) sum() (out [sha256.Size]byte) {
	h.Sum(out[:0])
	return out
}
