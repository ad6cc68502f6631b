package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/cache/blob"
)

// TestHostileIndex has indexes that come from little, and would take gigabytes.
func TestHostileIndex(t *testing.T) {
	const (
		size  = maxIndex / 6
		bound = 384 << 20 // of all that is allocated, much of which is freed on the way
	)
	fill := func(item string) string {
		return strings.TrimSuffix(strings.Repeat(item+",", size/(len(item)+1)), ",")
	}
	some := func(item string) string { return strings.TrimSuffix(strings.Repeat(item+",", maxPerItem), ",") }
	diff := blob.Digest{1}.String()
	for name, fields := range map[string]string{
		"empty layers":          `"layers":[` + fill(`{}`) + `]`,
		"layers that are null":  `"layers":[` + fill(`null`) + `]`,
		"empty blobs":           `"layers":[{"diffID":"` + diff + `","blobs":[` + fill(`{}`) + `]}]`,
		"layers of empty blobs": `"layers":[` + fill(`{"diffID":"`+diff+`","blobs":[`+some(`{}`)+`]}`) + `]`,
		"links to the first":    `"layers":[{"diffID":"` + diff + `"}],"chains":[{"parent":-1},` + fill(`{}`) + `]`,
		"empty records":         `"records":[` + fill(`{}`) + `]`,
		"short records":         `"records":[` + fill(`{"keys":[null]}`) + `]`,
		"records of signatures": `"records":[` + fill(`{"keys":[null],"signatures":[`+some(`{}`)+`]}`) + `]`,
		"inputs that are null":  `"records":[{"keys":[null],"inputs":[` + fill(`null`) + `]}]`,
		"empty pieces":          `"mounts":[{"id":"x","pieces":[` + fill(`{}`) + `]}]`,
		"behind a quote":        `"records":[{"name":"\"","keys":[null],"inputs":[` + fill(`null`) + `]}]`,
	} {
		data := []byte(`{"version":1,` + fields + `}`)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := decode(data)
		runtime.ReadMemStats(&after)
		var format *FormatError
		if !errors.As(err, &format) {
			t.Errorf("%s: got %v, want a FormatError", name, err)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > bound {
			t.Errorf("%s: %d MiB were allocated, want %d at most", name, took>>20, bound>>20)
		}
	}
}

// TestLargeIndex has items as long as kiln writes them.
func TestLargeIndex(t *testing.T) {
	x := sample(1)
	m := mount{ID: "large", List: blob.Descriptor{MediaType: listType, Digest: blob.Digest{1}, Size: 1}}
	for n := range maxPieces {
		d := blob.Descriptor{MediaType: pieceType, Digest: blob.Digest{byte(n), byte(n >> 8)}, Size: 1}
		m.Pieces = append(m.Pieces, piece{ID: id(d.Digest), Blob: d})
	}
	x.Mounts = []mount{m}
	x.Records[0].Name = strings.Repeat(`a "{[,`, maxValues)
	for n := range 10_000 {
		x.Records[1].Inputs = append(x.Records[1].Inputs, id{byte(n), byte(n >> 8)})
	}
	data, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	// What a later kiln adds is passed over.
	data = fmt.Appendf(nil, `{"later":{"a":[1,{"b":null}]},%s`, data[1:])
	got, err := decode(data)
	if err != nil || len(got.Mounts) != 1 || len(got.Mounts[0].Pieces) != maxPieces || len(got.Records[1].Inputs) != 10_000 {
		t.Errorf("got %v, want it whole", err)
	}
}
