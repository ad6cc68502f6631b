package kiln

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// defaultProvenanceEnv is where facts about this machine are, if the configuration
// says nothing else.
const defaultProvenanceEnv = "/etc/kiln/provenance.d"

// maxProvenanceEnv bounds one file of facts.
const maxProvenanceEnv = 1 << 20

// readProvenanceEnv reads what whoever runs this machine wants said of it in each
// provenance: the members of the JSON objects in a folder's files. Of two files that
// have the same member the later one's counts, in the order of names. A folder that is
// not there says nothing.
func readProvenanceEnv(dir string) (map[string]any, error) {
	if dir == "" {
		dir = defaultProvenanceEnv
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what provenance is to say of this machine: %w", err)
	}
	env := map[string]any{}
	for _, e := range entries {
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		if err := addProvenanceEnv(env, filepath.Join(dir, e.Name())); err != nil {
			return nil, fmt.Errorf("reading what provenance is to say of this machine: %w", err)
		}
	}
	// What the builder says of itself is not for a file to change.
	for _, key := range []string{"buildConfig", "builderPlatform", "platform"} {
		if _, ok := env[key]; ok {
			return nil, fmt.Errorf("the files of %s have a member %q, which is the builder's own in a provenance", dir, key)
		}
	}
	return env, nil
}

func addProvenanceEnv(env map[string]any, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxProvenanceEnv+1))
	if err != nil {
		return err
	}
	if len(data) > maxProvenanceEnv {
		return fmt.Errorf("%s is larger than %d bytes", name, maxProvenanceEnv)
	}
	if err := json.Unmarshal(data, &env); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
