package dockerfile

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
)

// add is ADD: a COPY that unpacks archives, downloads, and clones repositories.
func (l *line) add(c *instructions.AddCommand) error {
	cp := &copying{
		verb: "ADD", code: c.String(), words: c.SourcesAndDest,
		from: l.context, fromCtx: true,
		chown: c.Chown, chmod: c.Chmod, exclude: c.ExcludePatterns, link: c.Link,
		keepGit: c.KeepGitDir, checksum: c.Checksum, unpack: c.Unpack,
	}
	if cp.checksum != "" {
		if len(c.SourcePaths) != 1 {
			return errors.New("checksum can't be specified for multiple sources")
		}
		if src := c.SourcePaths[0]; !isHTTP(src) && !isGit(src) {
			return errors.New("checksum requires HTTP(S) or Git sources")
		}
	}
	if err := l.place(cp); err != nil {
		return err
	}
	for _, src := range c.SourcePaths {
		if !isHTTP(src) && !isRepository(src) {
			l.reads.add(filepath.ToSlash(src))
		}
	}
	return nil
}

// isRepository reports whether a source of ADD is cloned.
func isRepository(src string) bool {
	ref, ok, err := parseGit(src)
	return ok && err == nil && !ref.IndistinguishableFromLocal
}

// addGit adds the files of a repository.
func (l *line) addGit(cp *copying, ref *dfgitutil.GitRef, name string) error {
	if cp.verb != "ADD" {
		return errors.New("source can't be a git ref for COPY")
	}
	keep := cp.keepGit
	if ref.KeepGitDir != nil {
		if keep != nil && *keep != *ref.KeepGitDir {
			return errors.New("inconsistent keep-git-dir configuration")
		}
		keep = ref.KeepGitDir
	}
	checksum := cp.checksum
	if ref.Checksum != "" {
		if checksum != "" && checksum != ref.Checksum {
			return fmt.Errorf("checksum mismatch %q != %q", checksum, ref.Checksum)
		}
		checksum = ref.Checksum
	}
	src := gitSource{
		ref:      ref,
		keepDir:  keep != nil && *keep,
		checksum: checksum,
		advice:   l.opts.gitAdvice,
		meta:     llb.Meta{Name: name, Locations: l.location(l.step.Location())},
	}
	cp.action(src.fsys(), &pb.FileActionCopy{Src: "/"})
	return nil
}

// addHTTP adds a download. It is unpacked only where --unpack says so.
func (l *line) addHTTP(cp *copying, url, name string) error {
	if cp.verb != "ADD" {
		return errors.New("source can't be a URL for COPY")
	}
	if cp.checksum != "" {
		if _, err := digest.Parse(cp.checksum); err != nil {
			return err
		}
	}
	file := httpFilename(url)
	meta := llb.Meta{Name: name, Locations: l.location(l.step.Location())}
	cp.action(httpSource(url, file, cp.checksum, meta), &pb.FileActionCopy{
		Src:                              file,
		AttemptUnpackDockerCompatibility: cp.unpack != nil && *cp.unpack,
	})
	return nil
}

func parseDigest(s string) (digest.Digest, error) {
	d, err := digest.Parse(s)
	if err != nil {
		return "", fmt.Errorf("digest %q of an image: %w", s, err)
	}
	return d, nil
}
