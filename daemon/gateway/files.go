package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/patternmatcher"
	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/frontend"
)

// maxMessage is what fits into one answer; clients take no more.
const maxMessage = 16<<20 - 4<<10

// ReadFile reads a file of a result, or a part of it.
func (f *Function) ReadFile(ctx context.Context, req *gwpb.ReadFileRequest) (*gwpb.ReadFileResponse, error) {
	ref, err := f.open(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	return readFile(ctx, ref, req)
}

func readFile(ctx context.Context, ref frontend.Ref, req *gwpb.ReadFileRequest) (*gwpb.ReadFileResponse, error) {
	var data []byte
	var err error
	if req.Range != nil && (req.Range.Offset < 0 || req.Range.Length < 0) {
		return nil, fault.New(codes.InvalidArgument, "invalid range for "+req.FilePath)
	}
	if r, ok := ref.(frontend.RangeReader); ok && req.Range != nil && req.Range.Length > 0 {
		data, err = r.ReadRange(ctx, req.FilePath, req.Range.Offset, req.Range.Length)
	} else if data, err = ref.ReadFile(ctx, req.FilePath); err == nil {
		data = cut(data, req.Range)
	}
	if err != nil {
		return nil, notFound(err)
	}
	if len(data) > maxMessage {
		return nil, fault.New(codes.ResourceExhausted, fmt.Sprintf("%s has %d bytes, an answer at most %d; read it in ranges", req.FilePath, len(data), maxMessage))
	}
	return &gwpb.ReadFileResponse{Data: data}, nil
}

// cut gives the part of data that a range names; a length of 0 is all that follows.
func cut(data []byte, r *gwpb.FileRange) []byte {
	if r == nil {
		return data
	}
	data = data[min(max(r.Offset, 0), int64(len(data))):]
	if r.Length > 0 {
		data = data[:min(r.Length, int64(len(data)))]
	}
	return data
}

// ReadDir lists a folder of a result.
func (f *Function) ReadDir(ctx context.Context, req *gwpb.ReadDirRequest) (*gwpb.ReadDirResponse, error) {
	ref, err := f.open(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	return readDir(ctx, ref, req)
}

func readDir(ctx context.Context, ref frontend.Ref, req *gwpb.ReadDirRequest) (*gwpb.ReadDirResponse, error) {
	entries, err := ref.ReadDir(ctx, req.DirPath)
	if err != nil {
		return nil, notFound(err)
	}
	var include *patternmatcher.PatternMatcher
	if req.IncludePattern != "" {
		if include, err = patternmatcher.New([]string{req.IncludePattern}); err != nil {
			return nil, fault.New(codes.InvalidArgument, fmt.Sprintf("the pattern %s: %v", req.IncludePattern, err))
		}
	}
	resp := &gwpb.ReadDirResponse{}
	for _, e := range entries {
		if include != nil {
			if ok, err := include.MatchesOrParentMatches(e.Name()); err != nil || !ok {
				continue
			}
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		resp.Entries = append(resp.Entries, statOf(info))
	}
	return resp, nil
}

// StatFile describes a path of a result.
func (f *Function) StatFile(ctx context.Context, req *gwpb.StatFileRequest) (*gwpb.StatFileResponse, error) {
	ref, err := f.open(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	return statFile(ctx, ref, req)
}

func statFile(ctx context.Context, ref frontend.Ref, req *gwpb.StatFileRequest) (*gwpb.StatFileResponse, error) {
	info, err := ref.Stat(ctx, req.Path)
	if err != nil {
		return nil, notFound(err)
	}
	return &gwpb.StatFileResponse{Stat: statOf(info)}, nil
}

// notFound gives a missing path the code for it.
func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(codes.NotFound, err.Error())
	}
	return err
}

// statOf puts a file's status into the form of BuildKit's messages.
func statOf(info fs.FileInfo) *types.Stat {
	st := &types.Stat{
		Path: path.Base(info.Name()), Mode: uint32(info.Mode()), Size: info.Size(), ModTime: info.ModTime().UnixNano(),
	}
	e, ok := info.Sys().(tree.Entry)
	if !ok {
		return st
	}
	mode := info.Mode()
	for bit, m := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if e.Mode&bit != 0 {
			mode |= m
		}
	}
	st.Mode, st.Uid, st.Gid = uint32(mode), e.UID, e.GID
	st.Linkname = e.Target
	if e.Kind == tree.Symlink {
		st.Size = int64(len(e.Target))
	}
	st.Devmajor, st.Devminor = int64(unix.Major(e.Dev)), int64(unix.Minor(e.Dev))
	for _, x := range e.Xattrs {
		if st.Xattrs == nil {
			st.Xattrs = map[string][]byte{}
		}
		st.Xattrs[x.Name] = []byte(x.Value)
	}
	return st
}
