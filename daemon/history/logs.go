package history

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/protobuf/proto"
)

// LogsType is the media type of a status stream: each message behind its length,
// four bytes with the lowest first.
const LogsType = "application/vnd.buildkit.status.v0"

// maxStatus bounds a message of a status stream that is read.
const maxStatus = 64 << 20

// WriteStatus writes a message of a status stream.
func WriteStatus(w io.Writer, m *controlapi.StatusResponse) error {
	data, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	var length [4]byte
	binary.LittleEndian.PutUint32(length[:], uint32(len(data)))
	if _, err := w.Write(length[:]); err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// ReadStatuses calls fn with each message of a status stream.
func ReadStatuses(r io.Reader, fn func(*controlapi.StatusResponse) error) error {
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		var length [4]byte
		if _, err := io.ReadFull(in, length[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("reading a status stream: %w", err)
		}
		n := binary.LittleEndian.Uint32(length[:])
		if n > maxStatus {
			return fmt.Errorf("reading a status stream: a message of %d bytes", n)
		}
		data := make([]byte, n)
		if _, err := io.ReadFull(in, data); err != nil {
			return fmt.Errorf("reading a status stream: %w", err)
		}
		m := &controlapi.StatusResponse{}
		if err := proto.Unmarshal(data, m); err != nil {
			return fmt.Errorf("reading a status stream: %w", err)
		}
		if err := fn(m); err != nil {
			return err
		}
	}
}
