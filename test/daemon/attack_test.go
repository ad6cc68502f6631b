package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/solver/pb"
	"github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc"
)

// op gives the bytes of an op, and the digest that they have.
func op(t *testing.T, o *pb.Op) (data []byte, digest string) {
	t.Helper()
	data, err := o.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return data, "sha256:" + hex.EncodeToString(sum[:])
}

// mkdir is a file op on the output of another, or on scratch.
func mkdir(t *testing.T, of string, index int64, name string) ([]byte, string) {
	t.Helper()
	o := &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{
		Input: -1, SecondaryInput: -1, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: "/" + name, Mode: 0o755, Timestamp: -1}},
	}}}}}
	if of != "" {
		o.Inputs = []*pb.Input{{Digest: of, Index: index}}
		o.GetFile().Actions[0].Input = 0
	}
	return op(t, o)
}

// result is the last op of a definition.
func result(t *testing.T, of string, index int64) []byte {
	t.Helper()
	data, _ := op(t, &pb.Op{Inputs: []*pb.Input{{Digest: of, Index: index}}})
	return data
}

// chain is a definition of n ops on top of each other.
func chain(t *testing.T, n int) [][]byte {
	t.Helper()
	var def [][]byte
	last := ""
	for i := range n {
		data, digest := mkdir(t, last, 0, fmt.Sprint(i))
		def, last = append(def, data), digest
	}
	return append(def, result(t, last, 0))
}

// TestHostileDefinitions sends definitions that do not hold together, or are more
// than anybody builds. Each is an error to its sender; a client that builds beside
// it does not notice.
func TestHostileDefinitions(t *testing.T) {
	c, d, profiles := newMeasured(t)
	before := d.measure(t, profiles)
	good := marshal(t, llb.Scratch().File(llb.Mkfile("/f", 0o644, nil)))
	first, digest := mkdir(t, "", 0, "a")
	// Two that stand on each other cannot name each other by what they hash to: one
	// of the names is a lie.
	lie := "sha256:" + strings.Repeat("ab", 32)
	cyclic, cyclicDigest := mkdir(t, lie, 0, "cycle")
	many := func(n int) [][]byte {
		return append(slices.Repeat([][]byte{first}, n), result(t, digest, 0))
	}
	nested := func(n int) [][]byte {
		inner := &pb.Definition{Def: [][]byte{first, result(t, digest, 0)}}
		for range n {
			data, digest := op(t, &pb.Op{Inputs: []*pb.Input{{Digest: digest}}, Op: &pb.Op_Build{Build: &pb.BuildOp{
				Builder: int64(pb.LLBBuilder), Inputs: map[string]*pb.BuildInput{"buildkit.llb.definition": {Input: 0}}, Def: inner,
			}}})
			inner = &pb.Definition{Def: [][]byte{first, data, result(t, digest, 0)}}
		}
		return inner.Def
	}
	for _, row := range []struct {
		name string
		def  [][]byte
	}{
		{"bytes that are no op", [][]byte{[]byte("\xff\xff\xff")}},
		{"an op without what it needs", [][]byte{good.Def[len(good.Def)-1]}},
		{"an empty op between the good", append([][]byte{{}}, good.Def...)},
		{"an op cut off in its middle", [][]byte{first[:len(first)/2], result(t, digest, 0)}},
		{"an op that stands on one that is not there", [][]byte{cyclic, result(t, cyclicDigest, 0)}},
		{"ops that stand on each other", [][]byte{first, cyclic, result(t, cyclicDigest, 0)}},
		{"a result that is not there", [][]byte{first, result(t, lie, 0)}},
		{"an output beyond those that the op has", [][]byte{first, result(t, digest, 7)}},
		{"a negative output", [][]byte{first, result(t, digest, -1)}},
		{"an input that is no digest", [][]byte{first, result(t, "../../etc/passwd", 0)}},
		{"a million vertices", many(1_000_000)},
		{"definitions inside of definitions", nested(1000)},
	} {
		ended := make(chan error, 1)
		go func() {
			_, err := c.ControlClient().Solve(t.Context(), solveRequest(&pb.Definition{Def: row.def}))
			ended <- err
		}()
		other := marshal(t, llb.Scratch().File(llb.Mkfile("/"+identity.NewID(), 0o644, nil)))
		if _, err := c.Solve(t.Context(), other, client.SolveOpt{}, nil); err != nil {
			t.Errorf("%s: a build beside it: %v", row.name, err)
		}
		if err := <-ended; err == nil {
			t.Errorf("%s: no error", row.name)
		}
	}
	// Deep, and well formed: it is built, as it would be from any other client.
	if _, err := c.ControlClient().Solve(t.Context(), solveRequest(&pb.Definition{Def: chain(t, 500)})); err != nil {
		t.Errorf("500 ops on top of each other: %v", err)
	}
	if got := d.peak(t); got > maxMemory {
		t.Errorf("the daemon took %d MiB, want less than %d", got>>20, maxMemory>>20)
	}
	d.settles(t, profiles, before)
}

// hostileFolder is a session's file sync that sends what it likes.
type hostileFolder struct {
	filesync.UnimplementedFileSyncServer
	send func(stream filesync.FileSync_DiffCopyServer) error
}

func (h *hostileFolder) Register(s *grpc.Server) { filesync.RegisterFileSyncServer(s, h) }

func (h *hostileFolder) DiffCopy(stream filesync.FileSync_DiffCopyServer) error {
	return h.send(stream)
}

// TestHostileFolders has clients send folders that lead out of the mirror, or never
// end. The error is the sender's.
func TestHostileFolders(t *testing.T) {
	c, d, profiles := newMeasured(t)
	before := d.measure(t, profiles)
	entry := func(name string, mode fs.FileMode, size int64) *types.Packet {
		return &types.Packet{Type: types.PACKET_STAT, Stat: &types.Stat{Path: name, Mode: uint32(mode), Size: size}}
	}
	end := &types.Packet{Type: types.PACKET_STAT}
	packets := func(list ...*types.Packet) func(filesync.FileSync_DiffCopyServer) error {
		return func(stream filesync.FileSync_DiffCopyServer) error {
			for _, p := range list {
				if err := stream.SendMsg(p); err != nil {
					return err
				}
			}
			var p types.Packet
			return stream.RecvMsg(&p)
		}
	}
	// It sends until it is stopped.
	endless := func(size int64) func(filesync.FileSync_DiffCopyServer) error {
		return func(stream filesync.FileSync_DiffCopyServer) error {
			for _, p := range []*types.Packet{entry("endless", 0o644, size), end} {
				if err := stream.SendMsg(p); err != nil {
					return err
				}
			}
			piece := make([]byte, 1<<20)
			for {
				if err := stream.SendMsg(&types.Packet{Type: types.PACKET_DATA, Data: piece}); err != nil {
					return err
				}
			}
		}
	}
	for _, row := range []struct {
		name string
		send func(filesync.FileSync_DiffCopyServer) error
	}{
		{"a name with ..", packets(entry("../../outside", 0o644, 1), end)},
		{"an absolute name", packets(entry("/etc/kiln-was-here", 0o644, 1), end)},
		{"a file through a link", packets(&types.Packet{Type: types.PACKET_STAT, Stat: &types.Stat{Path: "a", Mode: uint32(fs.ModeSymlink | 0o777), Linkname: "/tmp"}}, entry("a/b", 0o644, 1), end)},
		{"a file that goes on beyond its size", endless(10 << 20)},
		{"a file of four exabytes", endless(1 << 62)},
		{"a client that hangs up", func(filesync.FileSync_DiffCopyServer) error { return errors.New("enough") }},
	} {
		s, err := session.NewSession(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		s.Allow(&hostileFolder{send: row.send})
		ended := make(chan error, 1)
		go func() { ended <- s.Run(t.Context(), c.Dialer()) }()
		def := marshal(t, llb.Scratch().File(llb.Copy(llb.Local("src"), "/", "/")))
		req := solveRequest(&pb.Definition{Def: def.Def, Metadata: def.ToPB().Metadata})
		req.Session = s.ID()
		if _, err := c.ControlClient().Solve(t.Context(), req); err == nil {
			t.Errorf("%s: no error", row.name)
		}
		s.Close()
		<-ended
	}
	if _, err := c.Solve(t.Context(), marshal(t, llb.Scratch().File(llb.Mkfile("/f", 0o644, nil))), client.SolveOpt{}, nil); err != nil {
		t.Errorf("after all that: %v", err)
	}
	d.settles(t, profiles, before)
}

// TestClientsThatDoNotListen builds beside clients that never read what they are
// told, or vanish without a word.
func TestClientsThatDoNotListen(t *testing.T) {
	c, d, profiles := newMeasured(t)
	before := d.measure(t, profiles)
	loud := llb.Image(shared.registry.Addr+"/busybox:latest").
		Run(llb.Args([]string{"sh", "-c", "yes " + strings.Repeat("loud ", 20) + " | head -c 30000000"}), llb.IgnoreCache).Root()
	def := marshal(t, loud)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	deaf := identity.NewID()
	stream, err := c.ControlClient().Status(ctx, &controlapi.StatusRequest{Ref: deaf})
	if err != nil {
		t.Fatal(err)
	}
	_ = stream // nobody reads it
	if _, err := c.ControlClient().Solve(t.Context(), &controlapi.SolveRequest{Ref: deaf, Definition: def.ToPB()}); err != nil {
		t.Errorf("a build that nobody listens to: %v", err)
	}
	// Connections that are cut in mid-build, without any word of HTTP/2's.
	for range 10 {
		gone, err := net.Dial("unix", filepath.Join(d.dir, "kiln.sock"))
		if err != nil {
			t.Fatal(err)
		}
		other, err := client.New(t.Context(), "unix:///cut", client.WithContextDialer(func(context.Context, string) (net.Conn, error) { return gone, nil }))
		if err != nil {
			t.Fatal(err)
		}
		begun, ended := solveInBackground(t.Context(), t, other, sleeper(identity.NewID()))
		within(t, "the step's output", begun)
		gone.Close()
		if err := <-ended; err == nil {
			t.Error("a build whose connection was cut ended well")
		}
		other.Close()
	}
	deadline := time.Now().Add(20 * time.Second)
	for sleeping(t, d.cmd.Process.Pid) {
		if time.Now().After(deadline) {
			t.Fatal("steps run 20 s after their only clients have gone")
		}
		time.Sleep(50 * time.Millisecond)
	}
	// What is no HTTP/2 at all.
	raw, err := net.Dial("unix", filepath.Join(d.dir, "kiln.sock"))
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(raw, "GET / HTTP/1.1\r\n\r\n")
	io.Copy(io.Discard, raw)
	raw.Close()
	cancel()
	d.settles(t, profiles, before)
}
