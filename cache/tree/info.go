package tree

import (
	"io/fs"
	"time"
)

// Info describes the entry as the standard library describes files. Its Sys is the
// entry.
func (e Entry) Info() fs.FileInfo { return info{e} }

type info struct{ e Entry }

var kindModes = map[Kind]fs.FileMode{
	Dir: fs.ModeDir, Symlink: fs.ModeSymlink, Fifo: fs.ModeNamedPipe, Socket: fs.ModeSocket,
	CharDev: fs.ModeDevice | fs.ModeCharDevice, BlockDev: fs.ModeDevice,
}

func (i info) Name() string       { return i.e.Name }
func (i info) Size() int64        { return i.e.Size }
func (i info) Mode() fs.FileMode  { return kindModes[i.e.Kind] | fs.FileMode(i.e.Mode)&fs.ModePerm }
func (i info) ModTime() time.Time { return time.Unix(0, i.e.MTime) }
func (i info) IsDir() bool        { return i.e.Kind == Dir }
func (i info) Sys() any           { return i.e }
