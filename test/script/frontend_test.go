package script

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// exampleFrontend builds the example of a frontend when the first script asks for it.
var exampleFrontend = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(shared.bin, "frontend")
	cmd := exec.Command("go", "build", "-trimpath", "-o", bin, "github.com/kiln-build/kiln/examples/frontend")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the example: %w\n%s", err, out)
	}
	return bin, nil
})

func cmdFrontend(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "frontend NAME")
	bin, err := exampleFrontend()
	ts.Check(err)
	ts.Setenv(args[0], bin)
}
