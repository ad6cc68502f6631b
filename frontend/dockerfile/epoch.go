package dockerfile

import (
	"archive/tar"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/klauspost/compress/zstd"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/solver/pb"
)

const epochArg = "SOURCE_DATE_EPOCH"

// defineEpoch reads SOURCE_DATE_EPOCH: seconds, or the name of something that has a
// time of its own: "context", a named context, or a stage that holds one download.
// Steps that declare the argument get the seconds.
func (c *compiler) defineEpoch(ctx context.Context, stages []instructions.Stage) error {
	value, given := c.buildArgs[epochArg]
	if !given {
		value, _ = c.globals.env.Get(epochArg)
	}
	if value == "" {
		if given {
			c.setEpochArg("")
		}
		return nil
	}
	if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
		t := time.Unix(seconds, 0).UTC()
		c.epoch = &t
	} else {
		from, err := c.epochSource(ctx, value, stages)
		if err != nil {
			return err
		}
		if c.epoch, err = c.timeOf(ctx, from); err != nil {
			return err
		}
	}
	seconds := ""
	if c.epoch != nil {
		seconds = strconv.FormatInt(c.epoch.Unix(), 10)
	}
	c.setEpochArg(seconds)
	return nil
}

func (c *compiler) setEpochArg(value string) {
	if _, ok := c.buildArgs[epochArg]; ok {
		delete(c.buildArgs, epochArg)
		if value != "" {
			c.buildArgs[epochArg] = value
		}
	}
	if _, ok := c.globals.env.Get(epochArg); ok {
		c.globals.env.unset(epochArg)
		if value != "" {
			c.globals.env.set(epochArg, value)
		}
	}
}

// epochSource finds what a name stands for. A nil one has no time.
func (c *compiler) epochSource(ctx context.Context, name string, stages []instructions.Stage) (*fsys, error) {
	if name == contextName {
		if c.in.remote != nil {
			return c.in.remote.source, nil
		}
		return c.in.context, nil
	}
	if nc, err := c.namedContextFor(name, nil, paths{}); err == nil && nc != nil {
		root, _, err := nc.load(ctx)
		return root, err
	}
	for i := range stages {
		if strings.EqualFold(stages[i].Name, name) {
			f, err := c.downloadOf(&stages[i])
			return f, parser.WithLocation(err, stages[i].Location)
		}
	}
	return nil, fmt.Errorf("invalid %s: %s", epochArg, name)
}

// downloadOf gives the one remote source that a stage made for its time holds.
func (c *compiler) downloadOf(st *instructions.Stage) (*fsys, error) {
	env := c.globals.env.clone()
	env.unset(epochArg)
	base, err := c.expandGlobal(st.BaseName, env)
	if err != nil {
		return nil, fmt.Errorf("failed to process source stage base name %q: %w", st.BaseName, err)
	}
	if base.Result != scratch {
		return nil, errors.New("SOURCE_DATE_EPOCH stage must use FROM scratch")
	}
	var found *fsys
	for _, cmd := range st.Commands {
		switch cmd := cmd.(type) {
		case *instructions.ArgCommand:
			if err := c.applyArgs(env, cmd); err != nil {
				return nil, err
			}
		case *instructions.AddCommand:
			if found != nil {
				return nil, errors.New("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD")
			}
			if found, err = c.remoteOf(cmd, env); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported %s instruction", cmd.Name())
		}
	}
	if found == nil {
		return nil, errors.New("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD")
	}
	return found, nil
}

func (c *compiler) applyArgs(env *environment, cmd *instructions.ArgCommand) error {
	for _, arg := range cmd.Args {
		if v, ok := c.buildArgs[arg.Key]; ok {
			env.set(arg.Key, v)
			continue
		}
		if arg.Value == nil {
			continue
		}
		v, err := c.expandGlobal(*arg.Value, env)
		if err != nil {
			return err
		}
		env.set(arg.Key, v.Result)
	}
	return nil
}

func (c *compiler) remoteOf(cmd *instructions.AddCommand, env *environment) (*fsys, error) {
	if len(cmd.SourceContents) != 0 || len(cmd.SourcePaths) != 1 {
		return nil, errors.New("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD source")
	}
	src, err := c.expandGlobal(cmd.SourcePaths[0], env)
	if err != nil {
		return nil, err
	}
	sum, err := c.expandGlobal(cmd.Checksum, env)
	if err != nil {
		return nil, err
	}
	if isHTTP(src.Result) {
		return httpSource(src.Result, httpFilename(src.Result), sum.Result, llb.Meta{}), nil
	}
	ref, ok, err := parseGit(src.Result)
	if ok && err != nil {
		return nil, err
	}
	if !ok || ref.IndistinguishableFromLocal {
		return nil, errors.New("SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD")
	}
	keep := cmd.KeepGitDir != nil && *cmd.KeepGitDir || ref.KeepGitDir != nil && *ref.KeepGitDir
	checksum := sum.Result
	if checksum == "" {
		checksum = ref.Checksum
	}
	return gitSource{ref: ref, keepDir: keep, checksum: checksum, advice: c.opts.gitAdvice}.fsys(), nil
}

// timeOf gives the time of the one source that a file system is made of: a commit's,
// a download's, or that of the newest file in a downloaded archive. Nil is none.
func (c *compiler) timeOf(ctx context.Context, f *fsys) (*epoch, error) {
	e, err := f.get()
	if err != nil || e.IsScratch() {
		return nil, err
	}
	v := onlySource(e)
	if v == nil {
		return nil, nil
	}
	op := v.Op().GetSource()
	remote := strings.HasPrefix(op.Identifier, "http://") || strings.HasPrefix(op.Identifier, "https://")
	if !remote && !strings.HasPrefix(op.Identifier, "git://") {
		return nil, nil
	}
	d, ok := c.in.bridge.(frontend.SourceDescriber)
	if !ok {
		return nil, fmt.Errorf("%s names %s, whose time cannot be asked for here; give it in seconds", epochArg, op.Identifier)
	}
	t, err := d.SourceTime(ctx, v)
	if err != nil {
		return nil, fmt.Errorf("finding the time of %s for %s: %w", op.Identifier, epochArg, err)
	}
	if !t.IsZero() {
		return &t, nil
	}
	if !remote || op.Attrs[pb.AttrHTTPFilename] == "" {
		return nil, nil
	}
	ref, err := c.in.bridge.Solve(ctx, llb.Edge{Vertex: v})
	if err != nil {
		return nil, err
	}
	data, err := readFile(ctx, ref, op.Attrs[pb.AttrHTTPFilename])
	if err != nil {
		return nil, err
	}
	return newestFile(data), nil
}

// onlySource gives the source vertex of a graph that has one alone.
func onlySource(e llb.Edge) *llb.Vertex {
	var only *llb.Vertex
	for _, v := range llb.Walk(e) {
		if v.Op().GetSource() == nil {
			continue
		}
		if only != nil {
			return nil
		}
		only = v
	}
	return only
}

// maxArchive bounds what an archive that is looked at may unpack to.
const maxArchive = 1 << 30

// newestFile gives the time of the newest file in a tar, which may be compressed;
// nil where it is none.
func newestFile(data []byte) *epoch {
	r, closer, err := decompressed(data)
	if err != nil {
		return nil
	}
	defer closer()
	tr := tar.NewReader(io.LimitReader(r, maxArchive))
	var newest *epoch
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return newest
		}
		if err != nil {
			return nil
		}
		if !h.FileInfo().Mode().IsRegular() {
			continue
		}
		if t := h.ModTime.UTC(); newest == nil || t.After(*newest) {
			newest = &t
		}
	}
}

func decompressed(data []byte) (io.Reader, func(), error) {
	r := bytes.NewReader(data)
	switch {
	case bytes.HasPrefix(data, []byte{0x1F, 0x8B}):
		z, err := gzip.NewReader(r)
		return z, func() {}, err
	case bytes.HasPrefix(data, []byte("BZh")):
		return bzip2.NewReader(r), func() {}, nil
	case bytes.HasPrefix(data, []byte{0x28, 0xB5, 0x2F, 0xFD}):
		z, err := zstd.NewReader(r)
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return r, func() {}, nil
}
