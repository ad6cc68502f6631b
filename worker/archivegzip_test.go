package worker

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// What follows the members of a gzip stream is passed over, and a failure to read it is not.
func TestGzipEnds(t *testing.T) {
	var packed bytes.Buffer
	for _, text := range []string{"one ", "two"} {
		w := gzip.NewWriter(&packed)
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	read := func(r io.Reader) (string, error) {
		r, err := decompress(r)
		if err != nil {
			return "", err
		}
		data, err := io.ReadAll(r)
		return string(data), err
	}
	for _, tail := range []string{"", "\x00", strings.Repeat("\x00", 512), "more", "\x1f\x8b"} {
		if got, err := read(io.MultiReader(bytes.NewReader(packed.Bytes()), strings.NewReader(tail))); got != "one two" || err != nil {
			t.Errorf("before %q: got %q, %v", tail, got, err)
		}
	}
	lost := errors.New("the line was cut")
	if _, err := read(io.MultiReader(bytes.NewReader(packed.Bytes()), iotest.ErrReader(lost))); !errors.Is(err, lost) {
		t.Errorf("cut behind a member: got %v", err)
	}
	if _, err := read(bytes.NewReader(packed.Bytes()[:packed.Len()-3])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut in a member: got %v", err)
	}
}
