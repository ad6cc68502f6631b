package caller

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/tonistiigi/fsutil/types"
)

// metadataName is the file in which the list of a folder is where metadata alone is
// wanted: of each entry the length of its types.Stat in four bytes, lowest first, and
// the types.Stat. A client's own file of that name is left out.
const metadataName = ".fsutil-metadata"

// metadataOnly writes a client's list into a file, and says which entries are wanted
// as they are: those that match patterns, and the folders that they are in.
type metadataOnly struct {
	wanted *patternmatcher.PatternMatcher
	file   *os.File
	out    *bufio.Writer
	above  []*types.Stat // the folders that the list is in and nobody wanted yet
}

func newMetadataOnly(root *os.Root, patterns []string) (*metadataOnly, error) {
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, fmt.Errorf("what is wanted beside metadata: %w", err)
	}
	if err := root.RemoveAll(metadataName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := root.OpenFile(metadataName, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("making the list of a folder: %w", err)
	}
	return &metadataOnly{wanted: m, file: f, out: bufio.NewWriterSize(f, 64<<10)}, nil
}

// note takes an entry of the list and gives what is to be put into the mirror: it,
// after the folders above it, or nothing.
func (m *metadataOnly) note(st *types.Stat, left *room) ([]*types.Stat, error) {
	if st.Path == metadataName {
		return nil, nil
	}
	data, err := st.MarshalVT()
	if err != nil {
		return nil, err
	}
	if err := left.take(int64(len(data)) + 4); err != nil {
		return nil, err
	}
	var size [4]byte
	binary.LittleEndian.PutUint32(size[:], uint32(len(data)))
	if _, err = m.out.Write(size[:]); err == nil {
		_, err = m.out.Write(data)
	}
	if err != nil {
		return nil, fmt.Errorf("writing the list of a folder: %w", err)
	}
	for n := len(m.above); n > 0 && !strings.HasPrefix(st.Path, m.above[n-1].Path+"/"); n-- {
		m.above = m.above[:n-1]
	}
	ok, err := m.wanted.MatchesOrParentMatches(st.Path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", st.Path, err)
	case ok:
		take := append(m.above, st)
		m.above = nil
		return take, nil
	case os.FileMode(st.Mode).IsDir():
		m.above = append(m.above, st)
	}
	return nil, nil
}

// finish writes what is left.
func (m *metadataOnly) finish() error {
	err := m.out.Flush()
	// The time that such a file is given says nothing of the folder.
	return errors.Join(err, m.file.Chmod(0o644), m.file.Close())
}

// close ends what finish did not.
func (m *metadataOnly) close() { m.file.Close() }
