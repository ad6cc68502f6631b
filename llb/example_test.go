package llb_test

import (
	"fmt"
	"os"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/solver/pb"
)

// A graph is made from its sources up, marshalled, and read back.
func Example() {
	image, err := llb.Source("docker-image://docker.io/library/alpine:3.20", nil)
	if err != nil {
		panic(err)
	}
	x := llb.Exec{
		Meta:   &pb.Meta{Args: []string{"apk", "add", "make"}, Cwd: "/"},
		Mounts: []llb.Mount{llb.Root(image.Output(0)), llb.Tmpfs("/tmp", 0)},
	}
	run, err := x.Vertex(llb.WithName("install make"))
	if err != nil {
		panic(err)
	}
	def, err := llb.Marshal(run.Output(0))
	if err != nil {
		panic(err)
	}
	e, err := llb.Load(def)
	if err != nil {
		panic(err)
	}
	for _, v := range llb.Walk(e) {
		fmt.Println(v.Kind(), v.Name())
	}
	// Output:
	// source docker-image://docker.io/library/alpine:3.20
	// exec install make
}

// A file op is a chain of actions; Files works their indexes out.
func ExampleFiles() {
	context, err := llb.Source("local://context", nil)
	if err != nil {
		panic(err)
	}
	var f llb.Files
	s := f.From(llb.Edge{}).Mkdir(&pb.FileActionMkDir{Path: "/srv", Mode: 0o755})
	s = s.Copy(f.From(context.Output(0)), &pb.FileActionCopy{Src: "/site", Dest: "/srv/"})
	v, err := f.Vertex([]llb.FileState{s})
	if err != nil {
		panic(err)
	}
	fmt.Println(v.Describe())
	for _, a := range v.Op().GetFile().Actions {
		fmt.Println(a.Input, a.SecondaryInput, a.Output)
	}
	// Output:
	// mkdir /srv, copy /site /srv/
	// -1 -1 -1
	// 1 0 0
}

func ExampleDot() {
	image, err := llb.Source("docker-image://a", nil, llb.WithName("base"))
	if err != nil {
		panic(err)
	}
	merged, err := llb.Merge([]llb.Edge{image.Output(0)}, llb.WithName("all"))
	if err != nil {
		panic(err)
	}
	if err := llb.Dot(os.Stdout, merged.Output(0)); err != nil {
		panic(err)
	}
	// Output:
	// digraph {
	//   n0 [label="base\ndocker-image://a" shape="ellipse" tooltip="sha256:2be837378066d1e3aae3721b76d5f25f82519494eb7337ef86e78661446ae832"];
	//   n1 [label="all\nmerge of 1" shape="invtriangle" tooltip="sha256:11249aef20eb97825aed546bb4f3ad6c350574f7d86845852387fc02d143ca1c"];
	//   n0 -> n1 [taillabel="0" headlabel="0"];
	//   result [shape=plaintext];
	//   n1 -> result [taillabel="0"];
	// }
}
