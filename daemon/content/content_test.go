package content

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"testing"

	api "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/daemon/history"
)

// large is a blob that takes several messages.
var large = bytes.Repeat([]byte("0123456789abcdef"), piece/8)

// serve gives a client of a service: the store has large, the history a record with logs.
func serve(t *testing.T, withHistory bool) api.ContentClient {
	t.Helper()
	store, err := blob.OpenStore(t.TempDir(), blob.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	id, err := blob.Parse(digest.FromBytes(large).String())
	if err == nil {
		err = store.Put(t.Context(), id, int64(len(large)), bytes.NewReader(large))
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &Service{Store: store}
	if withHistory {
		if s.History, err = history.Open(t.TempDir(), history.Options{MaxEntries: 5}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.History.Close() })
		d, err := s.History.Draft()
		if err != nil {
			t.Fatal(err)
		}
		logs, err := d.AttachBytes(history.LogsType, []byte("logs"))
		if err == nil {
			err = d.Commit(&controlapi.BuildHistoryRecord{Ref: "r", Logs: logs})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	l := bufconn.Listen(1 << 16)
	g := grpc.NewServer()
	s.Register(g)
	go g.Serve(l)
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return api.NewContentClient(conn)
}

func read(t *testing.T, c api.ContentClient, req *api.ReadContentRequest) ([]byte, error) {
	t.Helper()
	stream, err := c.Read(t.Context(), req)
	if err != nil {
		return nil, err
	}
	var out []byte
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if m.Offset != req.Offset+int64(len(out)) {
			t.Errorf("a message at %d comes after %d bytes", m.Offset, len(out))
		}
		out = append(out, m.Data...)
	}
}

func list(t *testing.T, c api.ContentClient, namespace string, filter ...string) []string {
	t.Helper()
	stream, err := c.List(metadata.AppendToOutgoingContext(t.Context(), namespaceHeader, namespace), &api.ListContentRequest{Filters: filter})
	var out []string
	for err == nil {
		var m *api.ListContentResponse
		if m, err = stream.Recv(); err == nil {
			for _, i := range m.Info {
				out = append(out, i.Digest)
			}
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return out
}

func TestRead(t *testing.T) {
	c := serve(t, true)
	of := digest.FromBytes(large).String()
	size := int64(len(large))
	for _, test := range []struct {
		req  *api.ReadContentRequest
		want []byte
	}{
		{&api.ReadContentRequest{Digest: of}, large},                                             // all of it
		{&api.ReadContentRequest{Digest: of, Offset: 5}, large[5:]},                              // from the middle
		{&api.ReadContentRequest{Digest: of, Offset: size - 3, Size: 2}, large[size-3 : size-1]}, // a part
		{&api.ReadContentRequest{Digest: digest.FromString("logs").String()}, []byte("logs")},    // of a record
		{&api.ReadContentRequest{Digest: of, Offset: size}, nil},                                 // nothing is left
	} {
		if got, err := read(t, c, test.req); err != nil || !bytes.Equal(got, test.want) {
			t.Errorf("%v: %d bytes, %v; want %d", test.req, len(got), err, len(test.want))
		}
	}
	for _, test := range []struct {
		req  *api.ReadContentRequest
		want codes.Code
	}{
		{&api.ReadContentRequest{Digest: digest.FromString("x").String()}, codes.NotFound},
		{&api.ReadContentRequest{Digest: "sha256:../../etc/passwd"}, codes.InvalidArgument},
		{&api.ReadContentRequest{Digest: digest.SHA512.FromString("x").String()}, codes.NotFound}, // another algorithm
		{&api.ReadContentRequest{Digest: of, Offset: size + 1}, codes.OutOfRange},
		{&api.ReadContentRequest{Digest: of, Size: size + 1}, codes.OutOfRange},
		{&api.ReadContentRequest{Digest: of, Offset: -1}, codes.OutOfRange},
		{&api.ReadContentRequest{Digest: of, Offset: 1, Size: 1<<63 - 1}, codes.OutOfRange}, // their sum is no number
	} {
		if _, err := read(t, c, test.req); status.Code(err) != test.want {
			t.Errorf("%v: got %v, want %v", test.req, err, test.want)
		}
	}
}

func TestListAndInfo(t *testing.T) {
	c := serve(t, true)
	stored, logs := digest.FromBytes(large).String(), digest.FromString("logs").String()
	if got := list(t, c, "buildkit"); !slices.Equal(got, []string{stored}) {
		t.Errorf("got %v, want what the store has", got)
	}
	if got := list(t, c, historyNamespace); !slices.Equal(got, []string{logs}) {
		t.Errorf("got %v, want what records name", got)
	}
	if got := list(t, c, "buildkit", "digest=="+logs); len(got) != 0 {
		t.Errorf("got %v with a filter for another", got)
	}
	info, err := c.Info(t.Context(), &api.InfoRequest{Digest: stored})
	if err != nil || info.Info.Size != int64(len(large)) {
		t.Errorf("got %v, %v", info, err)
	}
	without := serve(t, false)
	if got := list(t, without, historyNamespace); len(got) != 0 {
		t.Errorf("got %v without a history", got)
	}
}

func TestReadOnly(t *testing.T) {
	c := serve(t, false)
	w, err := c.Write(t.Context())
	if err == nil {
		_, err = w.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("writing: got %v", err)
	}
	if _, err := c.Delete(t.Context(), &api.DeleteContentRequest{Digest: digest.FromBytes(large).String()}); status.Code(err) != codes.Unimplemented {
		t.Errorf("deleting: got %v", err)
	}
	if _, err := c.Update(t.Context(), &api.UpdateRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("changing: got %v", err)
	}
}
