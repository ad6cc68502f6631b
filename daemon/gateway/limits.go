package gateway

import (
	"fmt"
	"slices"

	dockerref "github.com/distribution/reference"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/daemon/internal/fault"
)

// Limits say which frontends builds may use, their own and those that a frontend
// asks for. The zero Limits allow all.
type Limits struct {
	NoDockerfile, NoImages bool
	// Repositories are those that frontends in images may come from; none allows all.
	Repositories []string
}

// Check says whether a frontend may be used; source is its image, if it is in one.
func (l Limits) Check(name, source string) error {
	refuse := func(why string) error {
		return fault.New(codes.PermissionDenied, fmt.Sprintf("the frontend %s is not allowed by the daemon's configuration%s", name, why))
	}
	switch {
	case name == DockerfileFrontend && l.NoDockerfile, name == ImageFrontend && l.NoImages:
		return refuse("")
	case name != ImageFrontend || len(l.Repositories) == 0:
		return nil
	}
	image, err := dockerref.ParseNormalizedNamed(source)
	if err != nil {
		return fault.New(codes.InvalidArgument, fmt.Sprintf("the frontend's image %q: %v", source, err))
	}
	allowed := slices.ContainsFunc(l.Repositories, func(r string) bool {
		named, err := dockerref.ParseNormalizedNamed(r)
		return err == nil && named.Name() == image.Name()
	})
	if !allowed {
		return refuse(": " + image.Name() + " is none of its repositories")
	}
	return nil
}
