// Package blocks writes to Azure's blob storage: a blob in one request, or, where it
// is large, in blocks that are then listed. Two kinds of caches lie there, which
// reach it by addresses and logins of their own.
package blocks

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net/url"
)

const (
	// Version is that of the storage's protocol.
	Version = "2021-12-02"
	// MaxPut is what goes to the storage in one request. Larger blobs go in blocks
	// of blockSize, or of more where there would be too many.
	MaxPut = 128 << 20

	blockSize = 32 << 20
	maxBlocks = 50_000
)

// Open opens what is to be sent; it is called for each attempt.
type Open func(context.Context) (io.ReadCloser, error)

// Put makes one request that writes, with more in the query of the blob's address:
// nothing for a whole blob.
type Put func(ctx context.Context, query url.Values, size int64, open Open) error

// Upload writes a blob.
func Upload(ctx context.Context, size int64, open Open, put Put) error {
	if size <= MaxPut {
		return put(ctx, nil, size, open)
	}
	r, err := open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	var list struct {
		XMLName xml.Name `xml:"BlockList"`
		Latest  []string
	}
	buf := make([]byte, max(blockSize, (size+maxBlocks-1)/maxBlocks))
	for left := size; left > 0; {
		piece := buf[:min(left, int64(len(buf)))]
		if _, err := io.ReadFull(r, piece); err != nil {
			return fmt.Errorf("reading the blob: %w", err)
		}
		// Names of blocks are to be equally long.
		id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%08d", len(list.Latest)))
		if err := put(ctx, url.Values{"comp": {"block"}, "blockid": {id}}, int64(len(piece)), inMemory(piece)); err != nil {
			return err
		}
		list.Latest = append(list.Latest, id)
		left -= int64(len(piece))
	}
	data, err := xml.Marshal(list)
	if err != nil {
		return err
	}
	return put(ctx, url.Values{"comp": {"blocklist"}}, int64(len(data)), inMemory(data))
}

func inMemory(data []byte) Open {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}
