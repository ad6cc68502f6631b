package remote

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/frontend/dockerfile"
)

// source is the detail of an error that says which lines it is about, in the JSON
// that daemons send it in.
type source struct {
	Info   *pb.SourceInfo `json:"info"`
	Ranges []*pb.Range    `json:"ranges"`
}

// sourceType is the end of the type of that detail.
const sourceType = "/errdefs.Source+json"

// placed gives an error with the lines that the daemon says it is about.
func placed(err error) error {
	var answer interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &answer) {
		return err
	}
	var s source
	for _, d := range answer.GRPCStatus().Proto().GetDetails() {
		var found source
		if strings.HasSuffix(d.TypeUrl, sourceType) && json.Unmarshal(d.Value, &found) == nil && found.Info != nil {
			s = found // the last one is the step's own
		}
	}
	if s.Info == nil || len(s.Ranges) == 0 {
		return err
	}
	text := strings.TrimPrefix(err.Error(), "failed to solve: ")
	return dockerfile.Received(err, text, s.Info, s.Ranges)
}
