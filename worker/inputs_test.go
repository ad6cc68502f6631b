package worker

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/worker/source"
	"github.com/klauspost/compress/zstd"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/ulikunitz/xz"
)

// tarOf makes a tar stream of files by path; a path that ends in "/" is a directory.
func tarOf(t testing.TB, files ...[2]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f[0], Mode: 0o640, Size: int64(len(f[1])), Typeflag: tar.TypeReg, Uid: 3, Gid: 4}
		if strings.HasSuffix(f[0], "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o750
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packed(t testing.TB, how string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch how {
	case "plain":
		return data
	case "gzip":
		w = gzip.NewWriter(&b)
	case "xz":
		w, err = xz.NewWriter(&b)
	case "zstd":
		w, err = zstd.NewWriter(&b)
	case "bzip2":
		c := exec.Command("busybox", "bzip2", "-c")
		c.Stdin, c.Stdout = bytes.NewReader(data), &b
		if err := c.Run(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAddArchive(t *testing.T) {
	data := tarOf(t, [2]string{"top", "1"}, [2]string{"d/", ""}, [2]string{"d/f", "2"}, [2]string{"lib/so", "3"}, [2]string{".wh.kept", "no whiteout"})
	for _, how := range []string{"plain", "gzip", "bzip2", "xz", "zstd"} {
		t.Run(how, func(t *testing.T) {
			r := newRig(t, Session{})
			src := r.local("src", map[string]string{"a.tar": string(packed(t, how, data)), "not.tar": "no archive", "l": "->a.tar"})
			base := r.copied(llb.Edge{}, r.local("base", map[string]string{"x/usr/lib/old": "o", "x/lib": "->usr/lib", "x/d": "a file", "x/kept": "k"}), "/", "/")
			add := func(src1, dest string, owner *pb.ChownOpt) llb.Edge {
				a := copyAction(src1, dest)
				a.AttemptUnpackDockerCompatibility, a.Owner = true, owner
				return r.files(base, func(f *llb.Files, s llb.FileState) llb.FileState { return s.Copy(f.From(src), a) })
			}
			e := add("/l", "/x", nil)
			want := "x/\nx/.wh.kept\nx/d/\nx/d/f\nx/kept\nx/lib -> usr/lib\nx/top\nx/usr/\nx/usr/lib/\nx/usr/lib/old\nx/usr/lib/so\n"
			if got := r.lines(r.state(e)); got != want {
				t.Errorf("the archive made\n%swant\n%s", got, want)
			}
			if got := r.read(e, "x/usr/lib/so"); got != "3" {
				t.Errorf("a file of the archive holds %q, want 3", got)
			}
			owned := add("/a.tar", "/n/", &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: 9}}})
			for p, want := range map[string]uint32{"n": 0o755, "n/top": 0o640, "n/d": 0o750} {
				f, err := tree.Lookup(r.c, r.state(owned), p)
				if err != nil || f.UID != 9 || f.GID != 9 || f.Mode != want {
					t.Errorf("%s is %d:%d %o, %v; want 9:9 %o", p, f.UID, f.GID, f.Mode, err, want)
				}
			}
			if got := r.read(add("/not.tar", "/n/", nil), "n/not.tar"); got != "no archive" {
				t.Errorf("what is no archive holds %q", got)
			}
		})
	}
}

func TestBrokenArchiveIsAnError(t *testing.T) {
	r := newRig(t, Session{})
	data := packed(t, "gzip", tarOf(t, [2]string{"f", strings.Repeat("x", 100_000)}, [2]string{"g", "y"}))
	src := r.local("src", map[string]string{"a.tar": string(data[:len(data)-20])})
	a := copyAction("/a.tar", "/")
	a.AttemptUnpackDockerCompatibility = true
	_, err := r.try(r.files(llb.Edge{}, func(f *llb.Files, s llb.FileState) llb.FileState { return s.Copy(f.From(src), a) }))
	if err == nil || !strings.Contains(err.Error(), "a.tar") {
		t.Errorf("an archive that is cut short gives %v", err)
	}
}

// agents is an ssh agent that answers with what it is told, in capitals.
type agents struct{ t testing.TB }

// DialAgent makes agents SSH.
func (a agents) DialAgent(_ context.Context, id string) (net.Conn, error) {
	if id != "default" {
		return nil, os.ErrNotExist
	}
	ours, theirs := net.Pipe()
	go func() {
		defer ours.Close()
		b := make([]byte, 64)
		n, err := ours.Read(b)
		if err == nil {
			ours.Write(bytes.ToUpper(b[:n]))
		}
	}()
	return theirs, nil
}

func TestSSHAndSecretEnv(t *testing.T) {
	r := newRig(t, Session{SSH: agents{t}, Secrets: secrets{"tok": "s3cret"}})
	base := r.busybox()
	x := llb.Exec{
		Meta: &pb.Meta{
			Args: []string{"/bin/sh", "-c", "echo $TOK $https_proxy; stat -c %a:%u /run/agent; test -e /run/no || echo none; env | grep -c ^PATH="},
			Cwd:  "/", ProxyEnv: &pb.ProxyEnv{HttpsProxy: "http://p"},
		},
		Mounts: []llb.Mount{
			llb.Root(base), llb.SSH("/run/agent", &pb.SSHOpt{ID: "default", Mode: 0o600, Uid: 5}),
			llb.SSH("/run/no", &pb.SSHOpt{ID: "other", Optional: true}),
		},
		Network:   pb.NetMode_NONE,
		SecretEnv: []*pb.SecretEnv{{ID: "tok", Name: "TOK"}, {ID: "none", Name: "NONE", Optional: true}},
	}
	v, err := x.Vertex()
	r.solve(vertex(r, must(v, err)))
	out := r.out.take()
	for _, want := range []string{"s3cret http://p\n", "600:5\n", "none\n", "1\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("the step printed %q, want %q in it", out, want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(r.w.keyring, "kiln-*")); len(left) != 0 {
		t.Errorf("secrets are left at %v", left)
	}
	x.Mounts = []llb.Mount{llb.Root(base), llb.SSH("/a", &pb.SSHOpt{ID: "other"})}
	v, err = x.Vertex()
	if _, err := r.try(vertex(r, must(v, err))); err == nil || !strings.Contains(err.Error(), `no SSH key "other" forwarded from the client`) {
		t.Errorf("a missing agent gives %v", err)
	}
}

func TestAgentSocket(t *testing.T) {
	r := newRig(t, Session{SSH: agents{t}})
	m := &mounted{w: r.w, job: r.job(r.busybox().Vertex)}
	if err := m.ssh(context.Background(), &pb.Mount{SSHOpt: &pb.SSHOpt{ID: "default", Mode: 0o600}}, "/agent"); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", m.mounts[0].Source)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "HELLO" {
		t.Errorf("the agent answered %q, %v; want HELLO", got, err)
	}
	// A connection that is still open does not hold the step up.
	idle, err := net.Dial("unix", m.mounts[0].Source)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	m.release()
	if _, err := os.Lstat(m.mounts[0].Source); !os.IsNotExist(err) {
		t.Errorf("the socket is there still: %v", err)
	}
}

// pushImage puts an image of these layers into a registry and gives its reference.
func pushImage(t testing.TB, host string, layers ...[]byte) string {
	t.Helper()
	put := func(mediaType string, data []byte) ocispecs.Descriptor {
		d := ocispecs.Descriptor{MediaType: mediaType, Size: int64(len(data))}
		d.Digest = digest.FromBytes(data)
		url := fmt.Sprintf("http://%s/v2/img/blobs/uploads/?digest=%s", host, d.Digest)
		upload(t, "POST", url, "application/octet-stream", data)
		return d
	}
	config := ocispecs.Image{Platform: ocispecs.Platform{OS: "linux", Architecture: runtime.GOARCH}}
	m := ocispecs.Manifest{MediaType: ocispecs.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
		m.Layers = append(m.Layers, put(ocispecs.MediaTypeImageLayerGzip, packed(t, "gzip", l)))
	}
	config.RootFS.Type = "layers"
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	m.Config = put(ocispecs.MediaTypeImageConfig, data)
	if data, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	upload(t, "PUT", fmt.Sprintf("http://%s/v2/img/manifests/latest", host), m.MediaType, data)
	return host + "/img:latest"
}

func TestImage(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(discard)))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	ref := pushImage(t, host,
		tarOf(t, [2]string{"etc/", ""}, [2]string{"etc/passwd", "root:x:0:0::/:\nann:x:1000:1001::/:\n"}, [2]string{"old", "o"}),
		tarOf(t, [2]string{".wh.old", ""}, [2]string{"new", "n"}))
	r := newRig(t, Session{})
	img := vertex(r, must(llb.Source("docker-image://"+ref, nil)))
	id := r.solve(img)
	if c, err := r.c.Chain(id); err != nil || c.Depth != 2 {
		t.Fatalf("the image's chain has %d layers, %v; want 2", c.Depth, err)
	}
	if _, err := r.c.Merged(id); err == nil {
		t.Error("resolving an image unpacked it")
	}
	// A copy from it needs its files.
	if got := r.read(r.copied(llb.Edge{}, img, "/new", "/"), "new"); got != "n" {
		t.Errorf("/new holds %q, want n", got)
	}
	if got, want := r.lines(r.state(img)), "etc/\netc/passwd\nnew\n"; got != want {
		t.Errorf("the image holds\n%swant\n%s", got, want)
	}
	// An owner by name is looked up in the image.
	a := copyAction("/new", "/owned")
	a.Owner = &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: "ann"}}}}
	owned := r.files(img, func(f *llb.Files, s llb.FileState) llb.FileState { return s.Copy(f.From(img), a) })
	if e, err := tree.Lookup(r.c, r.state(owned), "owned"); err != nil || e.UID != 1000 || e.GID != 1001 {
		t.Errorf("/owned belongs to %d:%d, %v; want 1000:1001", e.UID, e.GID, err)
	}
	limited := vertex(r, must(llb.Source("docker-image://"+ref, map[string]string{pb.AttrImageLayerLimit: "1"})))
	if c, err := r.c.Chain(r.solve(limited)); err != nil || c.Depth != 1 {
		t.Errorf("with a limit of one layer there are %d, %v", c.Depth, err)
	}
	wrong := vertex(r, must(llb.Source("docker-image://"+ref, map[string]string{pb.AttrImageChecksum: "sha256:" + strings.Repeat("0", 64)})))
	if _, err := r.try(wrong); err == nil || !strings.Contains(err.Error(), "does not match expected checksum") {
		t.Errorf("another digest than was expected gives %v", err)
	}
	if _, err := r.try(vertex(r, must(llb.Source("gopher://x", nil)))); err == nil || !strings.Contains(err.Error(), `unknown source scheme "gopher"`) {
		t.Errorf("an unknown scheme gives %v", err)
	}
}

func TestExporterSource(t *testing.T) {
	r := newRig(t, Session{})
	id := r.solve(r.local("ctx", map[string]string{"a/x": "1"}))
	if err := r.w.Reader(testSession).Unpack(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	layers, err := r.c.Layers(id)
	if err != nil {
		t.Fatal(err)
	}
	err = tree.Walk(r.c, layers[0].Root, func(p string, e tree.Entry) error {
		if e.Kind == tree.File && !r.c.Pool().Has(e) {
			t.Errorf("%s is not in the pool", p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r.w.CloseSession(testSession)
	if local, err := r.w.localOf(nil, id); err != nil || local != nil {
		t.Errorf("a closed session's folder is known still: %v, %v", local, err)
	}
}

// A layer whose root is opaque hides all below it, from steps too.
func TestOpaqueRoot(t *testing.T) {
	r := newRig(t, Session{})
	below := r.copied(llb.Edge{}, r.local("ctx", map[string]string{"old": "1"}), "/", "/")
	id := r.solve(below)
	var b tree.Builder
	if err := b.Set("new", tree.Entry{Kind: tree.Dir, Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	root, err := b.Root(r.c)
	if err != nil {
		t.Fatal(err)
	}
	root.Opaque = true
	if id, err = r.w.extend(id, cache.Layer{ID: cache.LayerID{1}, Root: root}); err != nil {
		t.Fatal(err)
	}
	r.done[below.Vertex.Digest()] = []cache.ChainID{id}
	r.solve(r.run(r.busybox(), "ls /m", llb.Bind(below, "/", "/m")))
	if got := r.out.take(); got != "new\n" {
		t.Errorf("a step sees %q", got)
	}
}

func TestDeepChain(t *testing.T) {
	r := newRig(t, Session{})
	base := r.busybox()
	id := r.solve(base)
	const depth = 700
	for i := range depth {
		var b tree.Builder
		if err := b.Set("n", tree.Entry{Kind: tree.Symlink, Mode: 0o777, Target: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
		if err := b.Set(fmt.Sprintf("d/%d", i), tree.Entry{Kind: tree.Dir, Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
		root, err := b.Root(r.c)
		if err != nil {
			t.Fatal(err)
		}
		if id, err = r.w.extend(id, cache.Layer{ID: cache.TreeLayerID(root), Root: root}); err != nil {
			t.Fatal(err)
		}
	}
	lower, err := r.w.lower(context.Background(), nil, id)
	if err != nil {
		t.Fatal(err)
	}
	if len(lower) > maxLower || len(lower) < maxLower-cutEvery {
		t.Errorf("a chain of %d layers has %d folders, want %d to %d", depth, len(lower), maxLower-cutEvery, maxLower)
	}
	e := r.run(base, "stat -c %N /n; ls /d | wc -l")
	r.done[base.Vertex.Digest()] = []cache.ChainID{id}
	r.solve(e)
	if got := r.out.take(); !strings.Contains(got, "699") || !strings.Contains(got, "\n700\n") {
		t.Errorf("a step on %d layers printed %q", depth, got)
	}
}

var discard = log.New(io.Discard, "", 0)

func upload(t testing.TB, method, url, contentType string, data []byte) {
	t.Helper()
	req, err := http.NewRequest(method, url, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %s", method, url, resp.Status)
	}
}

// noLayouts has none.
type noLayouts struct{}

// Layout makes noLayouts Layouts.
func (noLayouts) Layout(context.Context, string) (source.BlobReader, error) {
	return nil, os.ErrNotExist
}

func TestOtherSources(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		io.WriteString(w, "fetched "+req.Header.Get("Authorization"))
	}))
	defer server.Close()
	r := newRig(t, Session{Secrets: secrets{"login": "Bearer me"}, Layouts: noLayouts{}})
	file := vertex(r, must(llb.Source(server.URL+"/f", map[string]string{pb.AttrHTTPAuthHeaderSecret: "login"})))
	if got := r.read(file, "f"); got != "fetched Bearer me" {
		t.Errorf("a file that is fetched holds %q", got)
	}
	image := vertex(r, must(llb.Source("oci-layout://x@sha256:"+strings.Repeat("1", 64), nil)))
	if _, err := r.try(image); err == nil || !strings.Contains(err.Error(), `image layout "x": not found`) {
		t.Errorf("a layout that nobody lends gives %v", err)
	}
}
