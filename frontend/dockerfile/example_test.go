package dockerfile_test

import (
	"fmt"

	"github.com/kiln-build/kiln/frontend/dockerfile"
)

func ExampleIgnoredBy() {
	patterns := []string{"*", "!src", "src/**/*.tmp"}
	for _, name := range []string{"README.md", "src/main.go", "src/a/b.tmp"} {
		pattern, ok := dockerfile.IgnoredBy(patterns, name)
		fmt.Printf("%s %v %q\n", name, ok, pattern)
	}
	// Output:
	// README.md true "*"
	// src/main.go false ""
	// src/a/b.tmp true "src/**/*.tmp"
}
