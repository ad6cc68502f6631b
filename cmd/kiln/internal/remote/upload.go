package remote

import (
	"fmt"
	"io"
	"os"

	"github.com/moby/buildkit/session/upload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// uploads sends files of this machine, by the paths that URLs have for them.
type uploads map[string]string

// Register makes it a part of a session.
func (u uploads) Register(s *grpc.Server) { upload.RegisterUploadServer(s, u) }

// Pull sends the file whose path a daemon says in a header.
func (u uploads) Pull(stream upload.Upload_PullServer) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	path := md.Get("urlpath")
	if len(path) != 1 || u[path[0]] == "" {
		return fmt.Errorf("this build has no file to send called %q", path)
	}
	f, err := os.Open(u[path[0]])
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(messages{stream}, struct{ io.Reader }{f}, make([]byte, messageSize))
	return err
}

// messageSize is a quarter of what BuildKit takes at once.
const messageSize = 1 << 20

// messages writes bytes as messages.
type messages struct{ stream upload.Upload_PullServer }

func (m messages) Write(p []byte) (int, error) {
	if err := m.stream.Send(&upload.BytesMessage{Data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}
