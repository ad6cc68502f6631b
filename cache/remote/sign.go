package remote

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/cache/blob"
)

// signature is one that a key made of a message. What the message is of, the
// place where the signature stands says.
type signature struct {
	By    id     `json:"by"` // the sha256 of the public key
	Value []byte `json:"value"`
}

// message puts together what is signed: a title that no other message has, and
// fields each of which has its length before it.
type message []byte

func newMessage(title string) message { return message("kiln cache " + title + "\x00") }

func (m message) bytes(b []byte) message {
	return append(binary.LittleEndian.AppendUint64(m, uint64(len(b))), b...)
}

func (m message) number(n int64) message { return binary.LittleEndian.AppendUint64(m, uint64(n)) }

func (m message) ids(list []id) message {
	m = m.number(int64(len(list)))
	for _, i := range list {
		m = append(m, i[:]...)
	}
	return m
}

func (m message) blob(d blob.Descriptor) message {
	return m.bytes([]byte(d.MediaType)).bytes(d.Digest[:]).number(d.Size)
}

// signer is the name of a key.
func signer(k ed25519.PrivateKey) id { return signerOf(k.Public().(ed25519.PublicKey)) }

func signerOf(k ed25519.PublicKey) id { return sha256.Sum256(k) }

func sign(k ed25519.PrivateKey, m message) signature {
	return signature{By: signer(k), Value: ed25519.Sign(k, m)}
}

// verified reports whether one of the signatures is that of a key for a message.
func verified(k ed25519.PublicKey, list []signature, m message) bool {
	by := signerOf(k)
	return slices.ContainsFunc(list, func(s signature) bool { return s.By == by && ed25519.Verify(k, m, s.Value) })
}

// verifiedByAny reports whether one of the signatures is that of one of the keys.
func verifiedByAny(keys []ed25519.PublicKey, list []signature, m message) bool {
	return slices.ContainsFunc(keys, func(k ed25519.PublicKey) bool { return verified(k, list, m) })
}

// signaturesCover reports whether have has all of want.
func signaturesCover(have, want []signature) bool {
	return !slices.ContainsFunc(want, func(w signature) bool {
		return !slices.ContainsFunc(have, func(h signature) bool { return h.By == w.By && slices.Equal(h.Value, w.Value) })
	})
}

// signersCover reports whether who signed want has signed have.
func signersCover(have, want []signature) bool {
	return !slices.ContainsFunc(want, func(w signature) bool {
		return !slices.ContainsFunc(have, func(h signature) bool { return h.By == w.By })
	})
}

// addSignatures gives those of both.
func addSignatures(have, more []signature) []signature {
	for _, s := range more {
		if len(have) < maxSignatures && !signaturesCover(have, []signature{s}) {
			have = append(slices.Clip(have), s)
		}
	}
	return have
}

// maxSignatures bounds those of one item.
const maxSignatures = 16

// message of a record is that of one of its keys, since a record may lose keys to
// newer ones. outputs are the layers of each output, bottom first.
func (r record) message(key id, outputs [][]id) message {
	m := newMessage("record 1").bytes(key[:]).bytes(r.Vertex[:]).ids(r.Inputs).number(int64(len(outputs)))
	for _, o := range outputs {
		m = m.ids(o)
	}
	return m
}

// message of a layer covers its blobs: an image that is pushed takes them as they are.
func (l layer) message() message {
	m := newMessage("layer 1").bytes(l.ID[:]).bytes(l.DiffID[:]).number(int64(len(l.Blobs)))
	for _, b := range l.Blobs {
		m = m.blob(b)
	}
	return m
}

// message of a copy names the tar stream that it is a blob of.
func (c layerCopy) message(of blob.Digest) message {
	return newMessage("copy 1").bytes(of[:]).blob(c.Blob)
}

// message of a variant names the tar stream that it is a variant of.
func (v variant) message(of blob.Digest) message {
	return newMessage("variant 1").bytes(of[:]).bytes([]byte(v.How)).bytes(v.DiffID[:]).blob(v.Blob)
}

func (m mount) message() message {
	out := newMessage("mount 1").bytes([]byte(m.ID)).blob(m.List).number(int64(len(m.Pieces)))
	for _, p := range m.Pieces {
		out = out.bytes(p.ID[:]).blob(p.Blob)
	}
	return out
}

// signedBy reports whether the layer says that a key has signed it; whoever counts
// on that holds the key itself, and compares what it would sign.
func (l layer) signedBy(k ed25519.PrivateKey) bool {
	return verified(k.Public().(ed25519.PublicKey), l.Signatures, l.message())
}

// ReadPrivateKey reads an ed25519 key from a PEM file, in the form that
// "openssl genpkey -algorithm ed25519" writes.
func ReadPrivateKey(file string) (ed25519.PrivateKey, error) {
	block, err := readPEM(file)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s holds no private key in PKCS #8 form: %w", file, err)
	}
	private, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds a key of another kind than ed25519", file)
	}
	return private, nil
}

// ReadPublicKey reads an ed25519 key from a PEM file, in the form that
// "openssl pkey -pubout" writes.
func ReadPublicKey(file string) (ed25519.PublicKey, error) {
	block, err := readPEM(file)
	if err != nil {
		return nil, err
	}
	if block.Type == "PRIVATE KEY" {
		return nil, fmt.Errorf("%s holds a private key; to check signatures takes the public one (openssl pkey -pubout)", file)
	}
	k, err := parsePublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s holds %w", file, err)
	}
	return k, nil
}

func parsePublicKey(der []byte) (ed25519.PublicKey, error) {
	k, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("no public key: %w", err)
	}
	public, ok := k.(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("a key of another kind than ed25519")
	}
	return public, nil
}

// publicKeyStart is what the one line of each ed25519 public key in a PEM file begins with.
const publicKeyStart = "MCowBQYDK2VwAyEA"

// PublicKeyText reads an ed25519 key that is written out: the line that stands in the
// PEM file. ok is false where the text is no such line, but the name of a file.
func PublicKeyText(text string) (k ed25519.PublicKey, ok bool, err error) {
	if !strings.HasPrefix(text, publicKeyStart) {
		return nil, false, nil
	}
	der, err := base64.StdEncoding.DecodeString(text)
	if err == nil {
		k, err = parsePublicKey(der)
	}
	if err != nil {
		return nil, true, fmt.Errorf("%q begins as a public key does, and is none: %w", text, err)
	}
	return k, true, nil
}

// maxKeyFile bounds a file that holds a key.
const maxKeyFile = 64 << 10

func readPEM(file string) (*pem.Block, error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxKeyFile {
		return nil, fmt.Errorf("%s is no file of a key", file)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New(file + " holds no key in PEM form")
	}
	return block, nil
}
