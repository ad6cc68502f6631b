package layer

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sys/unix"
)

// std gives the header that archive/tar writes for h.
func std(h header) ([]byte, error) {
	hdr := &tar.Header{
		Typeflag: h.kind, Name: h.name, Linkname: h.link, Mode: int64(h.mode & 0o7777),
		Uid: int(h.uid), Gid: int(h.gid), Size: h.size, ModTime: time.Unix(h.mtime, 0),
		Devmajor: int64(unix.Major(h.dev)), Devminor: int64(unix.Minor(h.dev)),
		Format: tar.FormatPAX,
	}
	for _, x := range h.xattrs {
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = map[string]string{}
		}
		hdr.PAXRecords[xattrKey+x.Name] = x.Value
	}
	var buf bytes.Buffer
	err := tar.NewWriter(&buf).WriteHeader(hdr)
	return buf.Bytes(), err
}

// differ gives where a and b differ first.
func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func TestHeaderIsArchiveTars(t *testing.T) {
	long := strings.Repeat("d/", 60) + "file"
	for _, h := range []header{
		{name: "a", kind: tar.TypeReg, mode: 0o644, size: 7, mtime: 1700000000},        // the everyday file
		{name: "d/", kind: tar.TypeDir, mode: 0o1777, mtime: 1},                        // a directory
		{name: "l", kind: tar.TypeSymlink, link: "../x", mode: 0o777},                  // a link
		{name: "l", kind: tar.TypeLink, link: strings.Repeat("y", 101), mode: 0o777},   // a long target
		{name: "l", kind: tar.TypeSymlink, link: "ü", mode: 0o777},                     // a target that is not ASCII
		{name: long, kind: tar.TypeReg, size: 1},                                       // a long name that ustar could split
		{name: strings.Repeat("x", 255), kind: tar.TypeReg},                            // one that it could not
		{name: strings.Repeat("x", 99) + "/yy/", kind: tar.TypeDir},                    // cut at a slash
		{name: strings.Repeat("x", 99) + "//", kind: tar.TypeDir},                      // and at two
		{name: "grüße/" + long, kind: tar.TypeReg},                                     // not ASCII and long
		{name: "\xff\xfe/ü", kind: tar.TypeReg},                                        // not even UTF-8
		{name: "ü/", kind: tar.TypeDir},                                                // a directory whose last element is not ASCII
		{name: "big", kind: tar.TypeReg, size: 1 << 33},                                // too large for 11 octal digits
		{name: "big", kind: tar.TypeReg, size: 1<<33 - 1},                              // just not
		{name: "old", kind: tar.TypeReg, mtime: -5},                                    // before 1970
		{name: "new", kind: tar.TypeReg, mtime: 1 << 33},                               // after 2242
		{name: "own", kind: tar.TypeReg, uid: 1 << 21, gid: 1<<32 - 1},                 // large owners
		{name: "dev", kind: tar.TypeChar, dev: unix.Mkdev(511, 1<<20-1), mode: 0o4755}, // a device
		{name: "p", kind: tar.TypeFifo, mode: 0o600},                                   // a pipe
		{name: "x", kind: tar.TypeReg, xattrs: []tree.Xattr{{Name: "security.capability", Value: "\x01\x00\x00\x02\x00\x04"}, {Name: "user.a", Value: ""}}}, // attributes with zero bytes, and empty
		{name: "x", kind: tar.TypeReg, xattrs: []tree.Xattr{{Name: "user.x", Value: strings.Repeat("v", 77)}}},                                              // a record whose length gains a digit
	} {
		want, err := std(h)
		if err != nil {
			t.Fatalf("%.40q: archive/tar: %v", h.name, err)
		}
		got, err := h.append(nil)
		if err != nil {
			t.Fatalf("%.40q: %v", h.name, err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%.40q: got %d bytes, want %d, the first difference at %d", h.name, len(got), len(want), differ(got, want))
		}
	}
}

func TestRecordLengthDigits(t *testing.T) {
	for n := range 1100 {
		h := header{name: "f", kind: tar.TypeReg, xattrs: []tree.Xattr{{Name: "user.x", Value: strings.Repeat("v", n)}}}
		want, err := std(h)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := h.append(nil); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("value of %d bytes: %v, bytes differ from archive/tar's", n, err)
		}
	}
}

func TestHeaderRefuses(t *testing.T) {
	for _, h := range []header{
		{name: "a\x00b", kind: tar.TypeReg},              // would end early
		{name: "a", link: "\x00", kind: tar.TypeSymlink}, // so would this
		{name: "a", kind: tar.TypeReg, xattrs: []tree.Xattr{{Name: "user.x", Value: strings.Repeat("v", maxPAX)}}}, // no reader takes it
	} {
		if b, err := h.append([]byte("kept")); err == nil || string(b) != "kept" {
			t.Errorf("%q: error %v with %d bytes written, want an error and none", h.name, err, len(b)-4)
		}
	}
}

func TestAttributeNameWithEquals(t *testing.T) {
	h := header{name: "f", kind: tar.TypeReg, xattrs: []tree.Xattr{{Name: "user.a=b", Value: "c=d"}}}
	b, err := h.append(nil)
	if err != nil {
		t.Fatal(err)
	}
	hdr, err := tar.NewReader(bytes.NewReader(append(b, zeros[:]...))).Next()
	if err != nil || hdr.PAXRecords[xattrKey+"user.a%3Db"] != "c=d" {
		t.Errorf("got %v, %v; want the name encoded", hdr, err)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add("a/b", "l", byte(tar.TypeReg), uint32(0o644), uint32(0), uint32(0), int64(3), int64(5), uint64(0), "user.x", "v")
	f.Add(strings.Repeat("ü", 90), strings.Repeat("l/", 90), byte(tar.TypeSymlink), uint32(0), uint32(1<<30), uint32(1<<31), int64(1<<40), int64(-1), uint64(77), "", "")
	kinds := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo}
	f.Fuzz(func(t *testing.T, name, link string, kind byte, mode, uid, gid uint32, size, mtime int64, dev uint64, xname, xvalue string) {
		kind = kinds[int(kind)%len(kinds)]
		name = strings.Trim(name, "/")
		if name == "" || strings.Contains(name, "//") || strings.Contains("/"+name+"/", "/./") || strings.Contains("/"+name+"/", "/../") {
			return // no tree has such names
		}
		if kind == tar.TypeDir {
			name += "/"
		}
		if kind != tar.TypeLink && kind != tar.TypeSymlink {
			link = ""
		}
		if kind != tar.TypeReg || size < 0 {
			size = 0
		}
		if mtime < -1<<40 || mtime > 1<<40 {
			return
		}
		dev = unix.Mkdev(uint32(dev)&4095, uint32(dev>>32)&(1<<20-1))
		h := header{name: name, link: link, kind: kind, mode: mode, uid: uid, gid: gid, size: size, mtime: mtime, dev: dev}
		if xname != "" && !strings.ContainsAny(xname, "=\x00") {
			h.xattrs = []tree.Xattr{{Name: xname, Value: xvalue}}
		}
		got, gerr := h.append(nil)
		want, werr := std(h)
		if (gerr == nil) != (werr == nil) {
			t.Fatalf("error %v, archive/tar's %v", gerr, werr)
		}
		if gerr != nil {
			return
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("got %d bytes, want %d, the first difference at %d", len(got), len(want), differ(got, want))
		}
		hdr, err := tar.NewReader(io.MultiReader(bytes.NewReader(got), bytes.NewReader(zeros[:]))).Next()
		if err != nil || hdr.Name != name || hdr.Linkname != link || hdr.Size != size {
			t.Fatalf("read back %+v, %v", hdr, err)
		}
	})
}
