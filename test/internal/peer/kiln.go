package peer

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// BuildKiln builds the command into dir and gives its path.
func BuildKiln(dir string) (string, error) {
	bin := filepath.Join(dir, "kiln")
	cmd := exec.Command("go", "build", "-trimpath", "-o", bin, "github.com/kiln-build/kiln/cmd/kiln")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building kiln: %w\n%s", err, out)
	}
	return bin, nil
}
