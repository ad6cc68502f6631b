// Package fuzz compares kiln's Dockerfile compiler with BuildKit's on whatever a
// fuzzer makes up: what the one accepts the other does, too. It is a module of its
// own, since it imports BuildKit's compiler, which nothing else here may.
//
// A disagreement that was found becomes a seed in testdata, and stays one. Run it by
//
//	cd test/fuzz && go test -fuzz FuzzSameVerdict -fuzztime 10m
package fuzz

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	bkllb "github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerui"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/dockerfile"
	"github.com/kiln-build/kiln/llb"
)

// slowest is how long a compiler may take for what a fuzzer makes up.
const slowest = 10 * time.Second

var machine = ocispecs.Platform{OS: "linux", Architecture: "amd64"}

func FuzzSameVerdict(f *testing.F) {
	for _, name := range dockerfiles(f) {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, text string) {
		start := time.Now()
		ours := byKiln(t.Context(), text)
		if d := time.Since(start); d > slowest {
			t.Errorf("kiln took %v", d)
		}
		if meant(ours) || asksOutside(text) {
			return
		}
		theirs := byBuildKit(t.Context(), text)
		if (ours == nil) != (theirs == nil) {
			t.Errorf("the compilers disagree\nkiln:     %v\nBuildKit: %v\n%s", ours, theirs, text)
		}
	})
}

// dockerfiles gives the Dockerfiles of the parity cases.
func dockerfiles(tb testing.TB) []string {
	files, err := filepath.Glob("../parity/cases/*/*.txtar")
	if err != nil || len(files) == 0 {
		tb.Fatalf("no parity cases: %v", err)
	}
	var out []string
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			tb.Fatal(err)
		}
		_, text, ok := strings.Cut(string(data), "\n-- Dockerfile --\n")
		if !ok {
			continue
		}
		text, _, _ = strings.Cut(text, "\n-- ")
		// The cases name images by where they are served; here any name is an image.
		out = append(out, strings.NewReplacer("@BASE@", "base", "@WEB@", "http://web", "@GIT@", "http://web").Replace(text)+"\n")
	}
	return out
}

// differences are kiln's errors where it differs on purpose; docs/dockerfile.md has
// the reasons.
var differences = []string{
	"the limit is",         // kiln bounds what a Dockerfile may come to
	"is built in",          // a syntax image that would have to be run
	"/etc/passwd",          // owners by name are looked up when the Dockerfile is compiled
	"/etc/group",           //
	"invalid context name", // BuildKit's compiler looks for named contexts where it has a client, and here has none
	"cannot be asked for",  // the time of a source, which the bridge here cannot tell
}

func meant(err error) bool {
	if err == nil {
		return false
	}
	for _, d := range differences {
		if strings.Contains(err.Error(), d) {
			return true
		}
	}
	return false
}

// asksOutside reports whether the verdict hangs on more than the text: BuildKit's
// compiler, called without a client, has no context to take a time from, and leaves
// the syntax directive to its caller.
func asksOutside(text string) bool {
	return strings.Contains(text, "SOURCE_DATE_EPOCH") || strings.Contains(text, "syntax")
}

// byBuildKit compiles with BuildKit's compiler, and marshals the graph: that is
// where some of its errors come up.
func byBuildKit(ctx context.Context, text string) error {
	caps := pb.Caps.CapSet(pb.Caps.All())
	res, err := dockerfile2llb.Dockerfile2LLB(ctx, []byte(text), dockerfile2llb.ConvertOpt{
		Config:       dockerui.Config{BuildPlatforms: []ocispecs.Platform{machine}},
		MetaResolver: images{}, LLBCaps: &caps,
		// Warnings that are errors count only where somebody takes them.
		Warn: func(_, _, _, _ string, _ []parser.Range) {},
	})
	if err != nil {
		return err
	}
	_, err = res.State.Marshal(ctx, bkllb.WithCaps(caps))
	return err
}

// byKiln does the same with kiln's.
func byKiln(ctx context.Context, text string) error {
	res, err := dockerfile.New().Build(ctx, frontend.Request{Machine: machine}, bridge{text})
	if err != nil {
		return err
	}
	for _, img := range res.Images {
		if _, err := llb.Marshal(img.Root); err != nil {
			return err
		}
	}
	return nil
}

// images resolves every name to an image, the same one each time.
type images struct{}

const imageConfig = `{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin","BASE=1"],"Cmd":["sh"],"WorkingDir":"/base"},"rootfs":{"type":"layers","diff_ids":["sha256:aaaa"]},"history":[{"created_by":"base"}]}`

func (images) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	return ref, digest.FromString(imageConfig), []byte(imageConfig), nil
}

// bridge gives kiln's compiler the text and the same images.
type bridge struct{ text string }

func (b bridge) ResolveImage(_ context.Context, ref string, _ frontend.ResolveOptions) (frontend.Image, error) {
	return frontend.Image{Ref: ref, Digest: digest.FromString(imageConfig).String(), Config: []byte(imageConfig)}, nil
}

func (b bridge) Solve(context.Context, llb.Edge) (frontend.Ref, error) {
	return folder{fstest.MapFS{"Dockerfile": {Data: []byte(b.text)}}}, nil
}

func (b bridge) Warn(frontend.Warning) {}

// folder is a file system in memory.
type folder struct{ fstest.MapFS }

func (f folder) ReadFile(_ context.Context, name string) ([]byte, error) {
	return fs.ReadFile(f.MapFS, name)
}

func (f folder) ReadDir(_ context.Context, name string) ([]fs.DirEntry, error) {
	return fs.ReadDir(f.MapFS, name)
}

func (f folder) Stat(_ context.Context, name string) (fs.FileInfo, error) {
	return fs.Stat(f.MapFS, name)
}

// TestSeesADisagreement holds the comparison itself to what is known to differ.
func TestSeesADisagreement(t *testing.T) {
	text := "FROM scratch\nCOPY --chown=alice a b\n"
	ours, theirs := byKiln(t.Context(), text), byBuildKit(t.Context(), text)
	if ours == nil || theirs != nil || !meant(ours) {
		t.Errorf("an owner by name on scratch: kiln says %v, BuildKit %v; want kiln's error alone", ours, theirs)
	}
	if err := byKiln(t.Context(), "FROM base\nCOPY a b\n"); err != nil {
		t.Errorf("kiln refuses a sound Dockerfile: %v", err)
	}
}
