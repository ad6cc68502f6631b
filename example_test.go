package kiln_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/solver"
)

// folder makes a build context for the examples.
func folder(dockerfile string) (context, root string, remove func()) {
	dir, err := os.MkdirTemp("", "kiln-example-")
	if err != nil {
		log.Fatal(err)
	}
	context = filepath.Join(dir, "context")
	for name, data := range map[string]string{"Dockerfile": dockerfile, "greeting": "hello\n"} {
		if err := os.MkdirAll(context, 0o755); err != nil {
			log.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(context, name), []byte(data), 0o644); err != nil {
			log.Fatal(err)
		}
	}
	return context, filepath.Join(dir, "state"), func() { os.RemoveAll(dir) }
}

func ExampleEngine_Build() {
	dir, root, remove := folder("FROM scratch\nCOPY greeting /\nCMD [\"/greeting\"]\n")
	defer remove()
	ctx := context.Background()

	engine, err := kiln.Open(ctx, kiln.Options{Root: root})
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()

	tarball := filepath.Join(filepath.Dir(root), "image.tar")
	request := kiln.Request{
		Context: dir,
		Outputs: []kiln.Output{{Type: "oci", Dest: tarball, Attrs: map[string]string{"name": "greeting:1"}}},
	}
	for range 2 {
		result, err := engine.Build(ctx, request)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d steps ran, %d were cached, digest %.7s…\n", result.Ran, result.Cached, result.Digest)
	}
	if info, err := os.Stat(tarball); err == nil && info.Size() > 0 {
		fmt.Println("the tarball is written")
	}
	// Output:
	// 1 steps ran, 0 were cached, digest sha256:…
	// 0 steps ran, 1 were cached, digest sha256:…
	// the tarball is written
}

func ExampleRequest_events() {
	dir, root, remove := folder("FROM scratch\nCOPY greeting /a\nCOPY greeting /b\n")
	defer remove()
	ctx := context.Background()

	engine, err := kiln.Open(ctx, kiln.Options{Root: root})
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()

	_, err = engine.Build(ctx, kiln.Request{
		Context: dir,
		Events: func(e kiln.Event) {
			if done, ok := e.(solver.VertexCompleted); ok && len(done.Inputs) > 0 {
				fmt.Println(done.Name)
			}
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// [1/2] COPY greeting /a
	// [2/2] COPY greeting /b
}
