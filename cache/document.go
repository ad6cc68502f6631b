package cache

import (
	"crypto/sha256"

	"github.com/kiln-build/kiln/cache/blob"
)

// documentsBucket maps an image's top layer, and the digest of what the image was
// named by, to the blobs that are the image's documents.
const documentsBucket = "documents"

// KeepDocuments keeps blobs that describe an image, its manifests and config, for as
// long as its top layer is known: who reads the image again then asks nobody for them.
func (c *Cache) KeepDocuments(top LayerID, documents ...blob.Digest) error {
	if len(documents) == 0 {
		return nil
	}
	key := append(top[:len(top):len(top)], documents[0][:]...)
	var value []byte
	for _, d := range documents {
		value = append(value, d[:]...)
	}
	return c.Bucket(documentsBucket).Put(key, value)
}

// documents claims the documents of the images whose top layers are claimed.
func (s *census) documents() error {
	return s.c.eachDocuments(func(top LayerID, _ []byte, documents []blob.Digest) error {
		if o, ok := s.layers[top]; ok {
			for _, d := range documents {
				claim(s, s.blobs, d, o)
			}
		}
		return nil
	})
}

// forgetDocuments forgets those of images whose top layers are gone.
func (c *Cache) forgetDocuments() error {
	b := c.Bucket(documentsBucket)
	return c.eachDocuments(func(top LayerID, key []byte, _ []blob.Digest) error {
		if c.db.has(dbKey(prefixLayer, (*[32]byte)(&top))) {
			return nil
		}
		return b.Delete(key)
	})
}

func (c *Cache) eachDocuments(fn func(top LayerID, key []byte, documents []blob.Digest) error) error {
	return c.Bucket(documentsBucket).Each(nil, func(k, v []byte) error {
		if len(k) != 2*sha256.Size || len(v)%sha256.Size != 0 {
			return nil // damaged: what it kept is fetched again
		}
		var documents []blob.Digest
		for ; len(v) > 0; v = v[sha256.Size:] {
			documents = append(documents, blob.Digest(v[:sha256.Size]))
		}
		return fn(LayerID(k[:sha256.Size]), k, documents)
	})
}
