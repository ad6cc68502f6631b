package caller

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/worker"
)

// scripted is a client that sends what it was told to, whatever it is asked for.
type scripted struct {
	grpc.BidiStreamingClient[types.Packet, types.Packet]
	packets []*types.Packet
}

func (s *scripted) RecvMsg(m any) error {
	if len(s.packets) == 0 {
		return io.EOF
	}
	proto.Merge(m.(*types.Packet), s.packets[0])
	s.packets = s.packets[1:]
	return nil
}

func (s *scripted) SendMsg(any) error { return nil }

func stat(path string, mode os.FileMode, size int64) *types.Packet {
	return &types.Packet{Type: types.PACKET_STAT, Stat: &types.Stat{Path: path, Mode: uint32(mode), Size: size}}
}

func link(path, to string, mode os.FileMode) *types.Packet {
	p := stat(path, mode, 0)
	p.Stat.Linkname = to
	return p
}

func data(id uint32, text string) *types.Packet {
	return &types.Packet{Type: types.PACKET_DATA, ID: id, Data: []byte(text)}
}

var (
	endOfList = &types.Packet{Type: types.PACKET_STAT}
	fin       = &types.Packet{Type: types.PACKET_FIN}
)

// mirrorOf makes a mirror beside a file that no client may reach.
func mirrorOf(t testing.TB) *os.Root {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "outside"), []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "mirror"), 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(filepath.Join(dir, "mirror"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func checkOutside(t testing.TB, root *os.Root) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(root.Name()))
	if err != nil || len(entries) != 2 {
		t.Errorf("beside the mirror there are %v (%v), want one file", entries, err)
	}
	got, err := os.ReadFile(filepath.Join(filepath.Dir(root.Name()), "outside"))
	if err != nil || string(got) != "untouched" {
		t.Errorf("the file outside holds %q (%v)", got, err)
	}
}

func TestReceive(t *testing.T) {
	root := mirrorOf(t)
	came := 0
	err := receive(t.Context(), &scripted{packets: []*types.Packet{
		stat("a", fs.ModeDir|0o700, 0), stat("a/f", fs.ModeSetuid|0o755, 4), link("a/g", "a/f", fs.ModeSetuid|0o755), link("a/l", "../../outside", fs.ModeSymlink|0o777),
		data(1, "te"), endOfList, data(1, "xt"), data(1, ""), fin,
	}}, root, worker.Filter{}, func(n int) { came += n })
	if err != nil {
		t.Fatal(err)
	}
	if came <= len("text") {
		t.Errorf("%d bytes were reported, want those of the list and of the content", came)
	}
	got, err := root.ReadFile("a/g")
	if err != nil || string(got) != "text" {
		t.Errorf("the hard link holds %q (%v), want text", got, err)
	}
	info, err := root.Stat("a/f")
	if err != nil || info.Mode() != 0o755|fs.ModeSetuid || info.ModTime().UnixNano() != 0 {
		t.Errorf("a/f is %v (%v), want -u rwxr-xr-x of 1970", info, err)
	}
	if to, err := root.Readlink("a/l"); err != nil || to != "../../outside" {
		t.Errorf("a/l leads to %q (%v)", to, err)
	}
	if info, err := root.Stat("a"); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("a is %v (%v), want rwx------", info, err)
	}
}

func TestReceiveRefuses(t *testing.T) {
	for _, test := range []struct {
		name    string
		packets []*types.Packet
		want    string
	}{
		{"a path upwards", []*types.Packet{stat("../outside", 0o644, 3), endOfList, data(0, "bad"), data(0, ""), fin}, "no folder can hold"},
		{"an absolute path", []*types.Packet{stat("/etc/passwd", 0o644, 3)}, "no folder can hold"},
		{"a path that is not clean", []*types.Packet{stat("a/../../outside", 0o644, 3)}, "no folder can hold"},
		{"the root itself", []*types.Packet{stat(".", fs.ModeDir|0o755, 0)}, "no folder can hold"},
		{"a zero byte", []*types.Packet{stat("a\x00b", 0o644, 0)}, "no folder can hold"},
		{"a negative size", []*types.Packet{stat("a", 0o644, -1)}, "no folder can hold"},
		{"a path that is too long", []*types.Packet{stat(strings.Repeat("n", 4096), 0o644, 0)}, "no folder can hold"},
		{"a folder that is a pipe later", []*types.Packet{stat("d", fs.ModeDir|0o755, 0), stat("d", fs.ModeNamedPipe|0o644, 0), endOfList, fin}, "each once"},
		{"a name before one that was listed", []*types.Packet{stat("b", 0o644, 0), stat("a", 0o644, 0)}, "in the order"},
		{"a name twice, with a folder between", []*types.Packet{stat("a", fs.ModeDir|0o755, 0), stat("a/b", 0o644, 0), stat("a", 0o644, 0)}, "in the order"},
		{"a file before its folder", []*types.Packet{stat("a/b", 0o644, 0)}, "before its folder"},
		{"a file through a link to the outside", []*types.Packet{link("a", "..", fs.ModeSymlink|0o777), stat("a/outside", 0o644, 3)}, "before its folder"},
		{"a hard link to the outside", []*types.Packet{link("a", "../outside", 0o644), endOfList, fin}, "outside"},
		{"a hard link to a link", []*types.Packet{link("a", "../outside", fs.ModeSymlink|0o777), link("b", "a", 0o644), endOfList, fin}, "no file"},
		{"content that nobody asked for", []*types.Packet{data(7, "x")}, "was not asked for"},
		{"more bytes than announced", []*types.Packet{stat("a", 0o644, 1), data(0, "xx")}, "changed at the client"},
		{"fewer bytes than announced", []*types.Packet{stat("a", 0o644, 2), data(0, "x"), data(0, "")}, "changed at the client"},
		{"a file without end", []*types.Packet{stat("a", 0o644, 1<<62), data(0, "x")}, "larger than what is free"},
		{"files that are too much together", []*types.Packet{stat("a", 0o644, 1<<20), stat("b", 0o644, 1<<62)}, "larger than what is free"},
		{"an end before the list's", []*types.Packet{stat("a", 0o644, 0), fin}, "before it had sent everything"},
		{"more after the list's end", []*types.Packet{endOfList, stat("a", 0o644, 0)}, "after the end"},
		{"an error of its own", []*types.Packet{{Type: types.PACKET_ERR, Data: []byte("sorry")}}, "sorry"},
		{"silence", nil, "EOF"},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := mirrorOf(t)
			err := receive(t.Context(), &scripted{packets: test.packets}, root, worker.Filter{}, func(int) {})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
			checkOutside(t, root)
		})
	}
}

// What comes behind a folder in the alphabet comes behind all that is in it.
func TestReceiveOrder(t *testing.T) {
	err := receive(t.Context(), &scripted{packets: []*types.Packet{
		stat("a", fs.ModeDir|0o755, 0), stat("a/z", fs.ModeDir|0o755, 0), stat("a/z/z", fs.ModeDir|0o755, 0), stat("a/z!", fs.ModeDir|0o755, 0),
		stat("a ", fs.ModeDir|0o755, 0), stat("a-b", fs.ModeDir|0o755, 0), stat("ab", fs.ModeDir|0o755, 0), endOfList, fin,
	}}, mirrorOf(t), worker.Filter{}, func(int) {})
	if err != nil {
		t.Error(err)
	}
}

// A pipe is not opened in the place of a folder, which would take until somebody
// writes to it.
func TestPipeIsNoFolder(t *testing.T) {
	root := mirrorOf(t)
	if err := unix.Mkfifo(filepath.Join(root.Name(), "d"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &receiver{root: root}
	if err := r.describe(stat("d", fs.ModeDir|0o755, 0).Stat); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("describing a folder that is a pipe gives %v", err)
	}
	if err := r.makeNode(stat("d/n", fs.ModeNamedPipe|0o600, 0).Stat); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("making something in a pipe gives %v", err)
	}
	if err := os.Symlink("..", filepath.Join(root.Name(), "l")); err != nil {
		t.Fatal(err)
	}
	if err := r.describe(stat("l", fs.ModeDir|0o755, 0).Stat); err == nil {
		t.Error("a folder outside was described by way of a link")
	}
	checkOutside(t, root)
}

// TestReceiveKeepsOtherFilters sends a part of a folder, then another part.
func TestReceiveKeepsOtherFilters(t *testing.T) {
	root := mirrorOf(t)
	send := func(f worker.Filter, packets ...*types.Packet) {
		t.Helper()
		if err := receive(t.Context(), &scripted{packets: append(packets, fin)}, root, f, func(int) {}); err != nil {
			t.Fatal(err)
		}
	}
	send(worker.Filter{Include: []string{"d/a"}}, stat("d", fs.ModeDir|0o755, 0), stat("d/a", 0o644, 1), endOfList, data(1, "a"), data(1, ""))
	send(worker.Filter{Include: []string{"d/b"}}, stat("d", fs.ModeDir|0o755, 0), stat("d/b", 0o644, 1), endOfList, data(1, "b"), data(1, ""))
	// d/b has gone, and with it all that the filter sees of d.
	send(worker.Filter{Include: []string{"d/b"}}, endOfList)
	var left []string
	fs.WalkDir(root.FS(), ".", func(p string, _ fs.DirEntry, _ error) error { left = append(left, p); return nil })
	if want := []string{".", "d", "d/a"}; !slices.Equal(left, want) {
		t.Errorf("the mirror holds %v, want %v", left, want)
	}
}

// FuzzReceive sends packets in any order: nothing outside of the mirror changes.
func FuzzReceive(f *testing.F) {
	f.Add("a", "a/b", "../outside", uint32(0o644), uint32(fs.ModeDir|0o755), uint32(fs.ModeSymlink|0o777), []byte{0, 1, 2, 3, 4, 5})
	f.Add("..", "a", "..", uint32(fs.ModeSymlink), uint32(0), uint32(fs.ModeNamedPipe|0o600), []byte{2, 0, 1, 3, 4})
	f.Fuzz(func(t *testing.T, p1, p2, to string, m1, m2, m3 uint32, order []byte) {
		if len(order) > 64 || (os.FileMode(m1)|os.FileMode(m2)|os.FileMode(m3))&fs.ModeDevice != 0 {
			return
		}
		var packets []*types.Packet
		for _, o := range order {
			switch o % 8 {
			case 0:
				packets = append(packets, stat(p1, os.FileMode(m1), int64(o%3)))
			case 1:
				packets = append(packets, link(p1, to, os.FileMode(m3)))
			case 2:
				packets = append(packets, link(p2, to, os.FileMode(m2)))
			case 3:
				packets = append(packets, stat(p2, os.FileMode(m2), int64(o%3)))
			case 4:
				packets = append(packets, data(uint32(o/8), "x"))
			case 5:
				packets = append(packets, data(uint32(o/8), ""))
			case 6:
				packets = append(packets, endOfList)
			case 7:
				packets = append(packets, link(p1, p2, os.FileMode(m1)))
			}
		}
		for _, f := range []worker.Filter{{}, {MetadataOnly: true, Exceptions: []string{"a", "b/**"}}} {
			root := mirrorOf(t)
			receive(t.Context(), &scripted{packets: append(packets, fin)}, root, f, func(int) {})
			checkOutside(t, root)
		}
	})
}
