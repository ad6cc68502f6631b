package registry_test

import (
	"fmt"

	"github.com/kiln-build/kiln/registry"
)

func ExampleParseReference() {
	for _, s := range []string{"debian", "me/app:v1", "127.0.0.1:5000/app"} {
		r, err := registry.ParseReference(s)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(r)
	}
	// Output:
	// docker.io/library/debian:latest
	// docker.io/me/app:v1
	// 127.0.0.1:5000/app:latest
}
