package remote

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/client"

	"github.com/kiln-build/kiln/request"
)

// caches puts remote caches into the terms of BuildKit's client. Public keys go to the
// daemon as the line that is in their files; of private ones a daemon is told the path,
// and reads the file itself where it may.
func caches(list []request.RemoteCache) ([]client.CacheOptionsEntry, error) {
	var out []client.CacheOptionsEntry
	for _, c := range list {
		attrs := maps.Clone(c.Attrs)
		if file := attrs["verify"]; file != "" {
			line, err := keyLine(file)
			if err != nil {
				return nil, fmt.Errorf("cache-from type=%s: verify: %w", c.Type, err)
			}
			attrs["verify"] = line
		}
		if file := attrs["sign"]; file != "" {
			whole, err := filepath.Abs(file)
			if err != nil {
				return nil, err
			}
			attrs["sign"] = whole
		}
		out = append(out, client.CacheOptionsEntry{Type: c.Type, Attrs: attrs})
	}
	return out, nil
}

// maxKeyFile bounds a file that holds a key.
const maxKeyFile = 64 << 10

// lineStart is what the line of each public key's file begins with.
const lineStart = "MCowBQYDK2Vw"

// keyLine gives the line of a public key's file, unless it is given that already.
// The daemon says whether it is a key: what reads keys there (remote.ReadPublicKey of the
// caches) belongs to the engine, which this command does not have on every system.
func keyLine(file string) (string, error) {
	if strings.HasPrefix(file, lineStart) {
		return file, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PUBLIC KEY" {
		return "", fmt.Errorf("%s holds no public key in PEM form", file)
	}
	return base64.StdEncoding.EncodeToString(block.Bytes), nil
}

// signatures names the first attribute of signatures that a request's caches have.
func signatures(r *request.Request) string {
	for _, c := range r.CacheFrom {
		if c.Attrs["verify"] != "" {
			return "check the signatures of caches (verify=)"
		}
	}
	for _, c := range r.CacheTo {
		if c.Attrs["sign"] != "" {
			return "sign caches (sign=)"
		}
	}
	return ""
}
