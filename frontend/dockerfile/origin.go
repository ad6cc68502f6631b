package dockerfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"sync"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

const (
	contextName    = "context"
	dockerfileName = "Dockerfile"
	ignoreName     = ".dockerignore"

	// maxFile bounds the files that are read into memory. It is BuildKit's limit, the
	// size of one message of its gateway API.
	maxFile = 16 << 20
)

// origin is where the Dockerfile and the main context of a build come from: local
// folders by default, or a git repository, a web server, another frontend's output.
type origin struct {
	bridge frontend.Bridge
	opts   *options

	filename   string // of the Dockerfile
	local      string // the local source that holds it
	dockerfile *fsys  // what holds it instead
	context    *fsys  // the main context, where it is no local folder
	remote     *remoteContext

	ignoreOnce sync.Once
	ignore     ignoreFile
	ignoreErr  error

	inputs map[string]llb.Edge // other frontends' results
}

// openInputs finds out what kind of context the request names.
func openInputs(ctx context.Context, b frontend.Bridge, req frontend.Request, opts *options) (*origin, error) {
	o := &origin{bridge: b, opts: opts, filename: dockerfileName, local: "dockerfile", inputs: req.Inputs}
	if v, ok := opts.raw["filename"]; ok {
		o.filename = v
	}
	key, forced := opts.raw["dockerfilekey"]
	if forced {
		o.local = key
	}
	asked := o.filename
	if err := o.openContext(ctx, req, forced); err != nil {
		return nil, err
	}
	if forced {
		o.dockerfile, o.filename = nil, asked // a context that is one file has none of the name
	}
	if sub, ok := opts.raw["contextsubdir"]; ok && o.context != nil {
		o.context = subfolder(o.context, sub)
	}
	return o, nil
}

func (o *origin) openContext(ctx context.Context, req frontend.Request, forced bool) error {
	key := contextName
	if v, ok := o.opts.raw["contextkey"]; ok {
		key = v
	}
	url := o.opts.raw[key]
	if git, ok, err := parseGit(url); ok {
		if err != nil {
			return err
		}
		o.openGit(url, git)
		return nil
	}
	if strings.HasPrefix(url, "http://") || strings.HasPrefix(url, "https://") {
		return o.openHTTP(ctx, url)
	}
	if e, ok := req.Inputs[o.local]; ok && !forced {
		o.dockerfile = &fsys{make: func() (llb.Edge, error) { return e, nil }}
	}
	if e, ok := req.Inputs[contextName]; ok {
		o.context = &fsys{make: func() (llb.Edge, error) { return e, nil }}
	}
	return nil
}

// readDockerfile fetches the Dockerfile, and the ignore file that is its own.
func (o *origin) readDockerfile(ctx context.Context) (*llb.File, error) {
	e, err := o.definition()
	if err != nil {
		return nil, err
	}
	ref, err := o.bridge.Solve(ctx, e)
	if err != nil {
		return nil, fmt.Errorf("failed to resolve dockerfile: %w", err)
	}
	data, err := readFile(ctx, ref, o.filename)
	if errors.Is(err, fs.ErrNotExist) && path.Base(o.filename) == dockerfileName {
		lower, err2 := readFile(ctx, ref, path.Join(path.Dir(o.filename), strings.ToLower(dockerfileName)))
		if err2 == nil {
			data, err = lower, nil
		}
	}
	if err != nil {
		e := &Error{Err: fmt.Errorf("failed to read dockerfile: %w", err)}
		if errors.Is(err, fs.ErrNotExist) {
			e.Hint = o.missing(ctx, ref)
		}
		if errors.As(err, new(*sizeError)) {
			e.Hint = "is it a Dockerfile? long texts are better in files of their own, which COPY brings in"
		}
		return nil, e
	}
	own := o.filename + ignoreName
	switch ignore, err := readFile(ctx, ref, own); {
	case err == nil:
		o.ignore = ignoreFile{name: own, data: ignore}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("failed to read %s: %w", own, err)
	}
	from, err := llb.Marshal(e)
	if err != nil {
		return nil, err
	}
	return &llb.File{Name: o.filename, Language: dockerfileName, Data: data, Definition: from}, nil
}

// missing says what to do where the Dockerfile is not there.
func (o *origin) missing(ctx context.Context, in frontend.Ref) string {
	if o.remote == nil || o.remote.archive == nil || o.dockerfile == nil {
		return "name the file with --file, or the folder that holds it as the context"
	}
	if _, err := readHead(ctx, in, httpContextFile, 1); err == nil {
		return "the context begins like a tarball, and could not be unpacked: it may be cut off, or empty"
	}
	return "name the file with --file, by its path in the tarball; a path that begins with / is one of this machine"
}

// definition is the file system that holds the Dockerfile.
func (o *origin) definition() (llb.Edge, error) {
	if o.dockerfile != nil {
		return o.dockerfile.get()
	}
	names := []string{o.filename, o.filename + ignoreName}
	if path.Base(o.filename) == dockerfileName {
		names = append(names, path.Join(path.Dir(o.filename), strings.ToLower(dockerfileName)))
	}
	return localSource{
		name:    o.local,
		session: o.opts.sessionOf(o.local),
		title:   "[internal] load build definition from " + o.filename,
		hint:    o.local,
		follow:  names,
		compare: differNone,
	}.vertex()
}

// mainContext is the context, of which the files in reads are wanted. It is asked
// for when all instructions have been seen.
func (o *origin) mainContext(reads paths, ignored []string) *fsys {
	if o.context != nil {
		return o.context
	}
	return &fsys{make: func() (llb.Edge, error) {
		return localSource{
			name:    contextName,
			session: o.opts.sessionOf(contextName),
			title:   "[internal] load build context",
			hint:    contextName,
			follow:  reads.follow(),
			exclude: ignored,
		}.vertex()
	}}
}

// ignorePatterns gives the patterns of the ignore file: the Dockerfile's own, or
// the context's. Contexts that are no local folder have none.
func (o *origin) ignorePatterns(ctx context.Context) ([]string, error) {
	if o.context != nil {
		return nil, nil
	}
	o.ignoreOnce.Do(func() {
		if o.ignore.data == nil {
			o.ignore, o.ignoreErr = o.readIgnore(ctx)
		}
	})
	if o.ignoreErr != nil {
		return nil, o.ignoreErr
	}
	return o.ignore.patterns()
}

func (o *origin) readIgnore(ctx context.Context) (ignoreFile, error) {
	return readIgnoreOf(ctx, o.bridge, localSource{
		name:    contextName,
		session: o.opts.sessionOf(contextName),
		title:   "[internal] load " + ignoreName,
		hint:    contextName + "-" + ignoreName,
		follow:  []string{ignoreName},
		compare: differNone,
	})
}

// keepGitDir says whether a git context keeps its .git folder.
func (o *origin) keepGitDir() bool {
	keep, _ := strconv.ParseBool(o.opts.buildArgs["BUILDKIT_CONTEXT_KEEP_GIT_DIR"])
	return keep
}

// readFile reads a file of at most maxFile bytes.
func readFile(ctx context.Context, ref frontend.Ref, name string) ([]byte, error) {
	// Where Stat fails the read says why.
	if st, err := ref.Stat(ctx, name); err == nil && st.Size() > maxFile {
		return nil, tooLarge(name)
	}
	data, err := ref.ReadFile(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, tooLarge(name)
	}
	return data, nil
}

// sizeError is a file that is too large to be read into memory.
type sizeError struct{ name string }

func (e *sizeError) Error() string {
	return fmt.Sprintf("%s exceeds maximum allowed size of %d bytes", e.name, maxFile)
}

func tooLarge(name string) error { return &sizeError{name} }
