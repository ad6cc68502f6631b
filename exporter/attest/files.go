package attest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter"
	"github.com/opencontainers/go-digest"
)

// File is a statement as it lies beside the files that it is about.
type File struct {
	Name string
	Data []byte
}

// Naming says what files of statements are called: Prefix stands before the name
// of the predicate's file, and Platform, if not empty, before its extension.
type Naming struct{ Prefix, Platform string }

// Files gives the statements about an image whose files are written, not its
// layers: each regular file of its state is a subject.
func Files(ctx context.Context, env exporter.Env, img exporter.Image, root tree.Entry, how Naming) ([]File, error) {
	needed := Needed(img.Attestations)
	if len(needed) == 0 {
		return nil, nil
	}
	predicates, err := Read(ctx, env, needed, nil)
	if err != nil {
		return nil, err
	}
	self := []Subject{}
	err = tree.Walk(env.Cache, root, func(name string, e tree.Entry) error {
		if e.Kind == tree.File {
			self = append(self, Of(name, digest.Digest(e.Content.String())))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing what attestations are about: %w", err)
	}
	var out []File
	seen := map[string]bool{}
	for _, p := range predicates {
		data, err := json.MarshalIndent(p.Statement(self), "", "  ")
		if err != nil {
			return nil, fmt.Errorf("writing the attestation %s: %w", p.Path, err)
		}
		name, err := how.name(p.Path)
		if err != nil {
			return nil, err
		}
		if seen[name] {
			return nil, fmt.Errorf("duplicate attestation path name %s", name)
		}
		seen[name] = true
		out = append(out, File{name, data})
	}
	return out, nil
}

// name gives what the statement of the predicate in a file is called.
func (n Naming) name(file string) (string, error) {
	name := n.Prefix + path.Base(path.Join("/", file))
	if n.Platform != "" {
		ext := path.Ext(name)
		name = strings.TrimSuffix(name, ext) + "." + n.Platform + ext
	}
	if err := tree.CheckName(name); err != nil || strings.Contains(name, "/") {
		return "", errors.Join(fmt.Errorf("an attestation cannot be called %q", name), err)
	}
	return name, nil
}
