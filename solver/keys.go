package solver

import (
	"crypto/sha256"
	"encoding/binary"
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
func keyOf(v *llb.Vertex, memory *[]byte) opKey {
	switch o := v.Op().Op.(type) {
	case *pb.Op_Source:
		return sourceKey(v.Op(), o.Source, memory)
	case *pb.Op_Exec:
		if o.Exec.Meta.ProxyEnv != nil || len(o.Exec.Meta.ExtraHosts) > 0 {
			return execKey(v, memory)
		}
	}
	return hashBody("op", v.Raw(), memory)
}

// hashBody hashes a marshalled op but for its inputs. A field is hashed as its
// bytes are: an op that two clients marshal differently is two ops.
func hashBody(kind string, raw []byte, memory *[]byte) opKey {
	const inputsField = 1
	h := newKey(memory, kind)
	for rest := raw; len(rest) > 0; {
		num, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			// Not to be met: the bytes were unmarshalled once. Hash what is left.
			h.bytes(rest)
			break
		}
		if num != inputsField {
			h.raw(rest[:n])
		}
		rest = rest[n:]
	}
	return opKey(h.sum(memory))
}

func execKey(v *llb.Vertex, memory *[]byte) opKey {
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
	return hashBody("exec", raw, memory)
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

func sourceKey(op *pb.Op, o *pb.SourceOp, memory *[]byte) opKey {
	scheme, rest, _ := strings.Cut(o.Identifier, "://")
	h := newKey(memory, "source")
	h.str(scheme)
	switch scheme {
	case "local":
		// The pin is the identity of the tree, filters applied.
		return opKey(h.sum(memory))
	case "docker-image", "oci-layout", "docker-image+blob", "oci-layout+blob":
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
	return opKey(h.sum(memory))
}

// definitionKey is H(op, pin, definition keys of the inputs with output indexes).
func (p *plan) definitionKey(n *node, memory *[]byte) cache.Key {
	h := newKey(memory, "definition")
	h.raw(n.op[:])
	h.str(n.pin)
	edges := n.vertex.Inputs()
	for k, in := range n.inputs {
		h.raw(p.nodes[in].dk[:])
		h.num(uint64(edges[k].Output))
	}
	return cache.Key(h.sum(memory))
}

// freshKey is the share key of a vertex that must not use what was made from
// records: it, or vertices below it, are to be run whatever the cache holds. It
// covers which ones, so that two builds only share what both want run anew.
func (p *plan) freshKey(n *node, memory *[]byte) cache.Key {
	h := newKey(memory, "fresh")
	h.raw(n.dk[:])
	if always(n.vertex) {
		h.num(1)
	} else {
		h.num(0)
	}
	for _, in := range n.inputs {
		h.raw(p.nodes[in].share[:])
	}
	return cache.Key(h.sum(memory))
}

// contentKey is H(op, what it sees of each input).
func contentKey(op opKey, inputs []cache.ContentID) cache.Key {
	memory := make([]byte, 0, 256)
	h := newKey(&memory, "content")
	h.raw(op[:])
	for _, c := range inputs {
		h.raw(c[:])
	}
	return cache.Key(h.sum(&memory))
}

// keyBuffer collects the fields that a key is the hash of, so that none can run
// into the next. It is made anew from its memory for each key.
type keyBuffer []byte

func newKey(memory *[]byte, kind string) keyBuffer {
	k := keyBuffer((*memory)[:0])
	k.str(keyVersion)
	k.str(kind)
	return k
}

func (k *keyBuffer) num(n uint64)   { *k = binary.LittleEndian.AppendUint64(*k, n) }
func (k *keyBuffer) raw(b []byte)   { *k = append(*k, b...) }
func (k *keyBuffer) str(s string)   { k.num(uint64(len(s))); *k = append(*k, s...) }
func (k *keyBuffer) bytes(b []byte) { k.num(uint64(len(b))); k.raw(b) }

// sum gives the key, and the memory back.
func (k keyBuffer) sum(memory *[]byte) [sha256.Size]byte {
	*memory = k
	return sha256.Sum256(k)
}
