// Command hello says what it was built with.
package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	name := "world"
	if len(os.Args) > 1 {
		name = os.Args[1]
	}
	fmt.Printf("Hello, %s. I was built by kiln with %s for %s/%s.\n", name, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
