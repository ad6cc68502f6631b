package worker

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"
)

// pack packs data by the xz module.
func pack(t testing.TB, c xz.WriterConfig, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := c.NewWriter(&b)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unpackXz(packed []byte, maxDict int64) ([]byte, error) {
	r, err := newXzReader(bufio.NewReader(bytes.NewReader(packed)), maxDict)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// words gives data that packs well, but not to nothing.
func words(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for b.Len() < n {
		b.WriteString([]string{"kiln ", "layer ", "tree ", "chain ", "\x00\xff", "a"}[r.IntN(6)])
	}
	return b.Bytes()[:n]
}

// ofXz is what the xz command makes of 3,000 bytes of "kiln " by "-T2 --block-size=1000":
// its blocks have their sizes in their headers.
const ofXz = "/Td6WFoAAATm1rRGA8AZ6AchARYAAAAAiDtEsOAD5wARXQA1mknXjAq0ULCERK/GlQltAAAAAADle+yyy0RTNAPAGegHIQEWAAAA" +
	"AIg7RLDgA+cAEV0ANZpJ14wKtFCwhESvxpUJbQAAAAAA5XvssstEUzQDwBnoByEBFgAAAACIO0Sw4APnABFdADWaSdeMCrRQsIRE" +
	"r8aVCW0AAAAAAOV77LLLRFM0AAMx6Acx6Acx6AcAgAApCBQXOzADAAAAAARZWg=="

func TestXz(t *testing.T) {
	data := words(300_000)
	small := xz.WriterConfig{DictCap: 1 << 16}
	one, other := pack(t, small, data), pack(t, xz.WriterConfig{DictCap: 1 << 20, CheckSum: xz.SHA256}, []byte("other"))
	fromXz, err := base64.StdEncoding.DecodeString(ofXz)
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 8)
	for _, test := range []struct {
		name   string
		packed []byte
		want   []byte
	}{
		{"no check", pack(t, xz.WriterConfig{NoCheckSum: true}, data), data},
		{"CRC32", pack(t, xz.WriterConfig{CheckSum: xz.CRC32}, data), data},
		{"CRC64", pack(t, xz.WriterConfig{CheckSum: xz.CRC64}, data), data},
		{"SHA-256", pack(t, xz.WriterConfig{CheckSum: xz.SHA256}, data), data},
		{"blocks", pack(t, xz.WriterConfig{DictCap: 1 << 16, BlockSize: 7001}, data), data},
		{"nothing", pack(t, small, nil), nil},
		{"streams", bytes.Join([][]byte{one, other, one}, nil), bytes.Join([][]byte{data, []byte("other"), data}, nil)},
		{"zeros between and behind streams", bytes.Join([][]byte{one, zeros, other, zeros[:4]}, nil), append(bytes.Clone(data), "other"...)},
		{"of the command", fromXz, bytes.Repeat([]byte("kiln "), 600)},
	} {
		got, err := unpackXz(test.packed, maxWindow)
		if err != nil || !bytes.Equal(got, test.want) {
			t.Errorf("%s: %d bytes, %v; want %d", test.name, len(got), err, len(test.want))
		}
	}
}

// Whatever is wrong with a file is found, but for lengths of packed data inside of
// LZMA2, which the content does not depend on.
func TestXzDamaged(t *testing.T) {
	data := words(500)
	for name, packed := range map[string][]byte{
		"two blocks":  pack(t, xz.WriterConfig{DictCap: 1 << 12, BlockSize: 300}, data),
		"two streams": append(pack(t, xz.WriterConfig{DictCap: 1 << 12, CheckSum: xz.CRC32}, data[:300]), pack(t, xz.WriterConfig{DictCap: 1 << 12, CheckSum: xz.SHA256}, data[300:])...),
	} {
		if got, err := unpackXz(packed, 1<<20); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%s, whole: %d bytes, %v", name, len(got), err)
		}
		for i := range packed {
			bad := bytes.Clone(packed)
			bad[i] ^= 1 << (i % 8)
			if got, err := unpackXz(bad, 1<<20); err == nil && !bytes.Equal(got, data) {
				t.Errorf("%s: with byte %d changed it holds other %d bytes", name, i, len(got))
			}
			if name == "two blocks" {
				if got, err := unpackXz(packed[:i], 1<<20); err == nil {
					t.Errorf("%s: of %d bytes it holds %d", name, i, len(got))
				}
			}
		}
		for _, tail := range []string{"x", "\x00\x00\x00", "\x00\x00\x00\x00\x00", "more behind its end"} {
			if _, err := unpackXz(append(bytes.Clone(packed), tail...), 1<<20); err == nil {
				t.Errorf("%s: with %q behind it it is whole", name, tail)
			}
		}
	}
}

// withDict changes the header at an offset so that it asks for a dictionary, by the
// number that the format has for its size.
func withDict(packed []byte, at int, code byte) []byte {
	out := bytes.Clone(packed)
	head := out[at : at+(int(out[at])+1)*4]
	head[4] = code // behind the header's size, flags, the filter and the size of what is said of it
	binary.LittleEndian.PutUint32(head[len(head)-4:], crc32.ChecksumIEEE(head[:len(head)-4]))
	return out
}

// A header that asks for too much memory is refused before that is taken, wherever in
// a file it is.
func TestXzMemory(t *testing.T) {
	const maxDict = 16 << 20
	const code4G, code16M, code24M = 40, 24, 25
	packed := pack(t, xz.WriterConfig{DictCap: 1 << 16, BlockSize: 1000}, words(1500))
	head := packed[12 : 12+(int(packed[12])+1)*4]
	second := bytes.LastIndex(packed, head)
	stream := bytes.Join([][]byte{packed, make([]byte, 4), packed}, nil)
	if second <= 12 {
		t.Fatal("there is no second block")
	}
	for _, test := range []struct {
		name   string
		packed []byte
		given  int // bytes of content that come first
		ok     bool
	}{
		{"first block", withDict(packed, 12, code4G), 0, false},
		{"second block", withDict(packed, second, code4G), 1000, false},
		{"second stream", withDict(stream, len(packed)+4+12, code4G), 1500, false},
		{"a little more than may be", withDict(packed, 12, code24M), 0, false},
		{"as much as may be", withDict(packed, second, code16M), 1500, true},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, err := unpackXz(test.packed, maxDict)
		runtime.ReadMemStats(&after)
		if len(got) != test.given || (err == nil) != test.ok || err != nil && !errors.Is(err, errXzMemory) {
			t.Errorf("%s: %d bytes, %v; want %d, and that to be good: %v", test.name, len(got), err, test.given, test.ok)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > maxDict+8<<20 {
			t.Errorf("%s: it took %d MiB", test.name, took>>20)
		}
	}
}

// Many small blocks with a large dictionary each are no work without end.
func TestXzManyDictionaries(t *testing.T) {
	const maxDict = 1 << 20
	const blocks = 500
	small := bytes.Repeat(pack(t, xz.WriterConfig{DictCap: maxDict}, []byte("1")), blocks)
	if got, err := unpackXz(small, maxDict); !errors.Is(err, errXzMemory) || len(got) >= blocks {
		t.Errorf("%d blocks of a byte: %d bytes, %v", blocks, len(got), err)
	}
	data := words(2000)
	large := bytes.Repeat(pack(t, xz.WriterConfig{DictCap: maxDict}, data), 2*freeDicts)
	if got, err := unpackXz(large, maxDict); err != nil || len(got) != 2*freeDicts*len(data) {
		t.Errorf("blocks of %d bytes: %d bytes, %v", len(data), len(got), err)
	}
}

// An archive that takes too much memory to unpack is said to, and not copied as it is.
func TestAddXzOfTooMuchMemory(t *testing.T) {
	data := withDict(packed(t, "xz", tarOf(t, [2]string{"f", "x"})), 12, 40)
	if is, err := isArchive(bytes.NewReader(data)); is || !errors.Is(err, errXzMemory) {
		t.Errorf("it is an archive: %v, %v", is, err)
	}
	if is, err := isArchive(strings.NewReader("\xfd7zXZ\x00 and then nothing like it")); is || err != nil {
		t.Errorf("what begins like one is an archive: %v, %v", is, err)
	}
}

// FuzzXz compares the reader with the module's, which takes whatever this one does.
func FuzzXz(f *testing.F) {
	f.Add(pack(f, xz.WriterConfig{DictCap: 1 << 12, BlockSize: 10}, []byte("several blocks of a few bytes")))
	f.Add(pack(f, xz.WriterConfig{DictCap: 1 << 12, NoCheckSum: true}, words(300)))
	f.Fuzz(func(t *testing.T, packed []byte) {
		const most = 1 << 20
		r, err := newXzReader(bufio.NewReader(bytes.NewReader(packed)), 1<<16)
		if err != nil {
			return
		}
		got, err := io.ReadAll(io.LimitReader(r, most))
		if err != nil || len(got) == most {
			return
		}
		reference, err := xz.NewReader(bytes.NewReader(packed))
		if err != nil {
			t.Fatal(err)
		}
		want, err := io.ReadAll(reference)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, want %d (%v)", len(got), len(want), err)
		}
	})
}
