package kiln

import (
	"fmt"
	"strings"

	"github.com/moby/buildkit/solver/pb"
)

// bundleOf gives the source that a git source's bundle is read from, so that it is
// judged like any other; nil where there is no bundle.
func bundleOf(op *pb.Op) (*pb.Op, error) {
	git := op.GetSource()
	locator := git.GetAttrs()[pb.AttrGitBundle]
	if locator == "" || !strings.HasPrefix(git.Identifier, "git://") {
		return nil, nil
	}
	bundle := &pb.SourceOp{Identifier: locator, Attrs: map[string]string{}}
	switch scheme, ref, _ := strings.Cut(locator, "://"); scheme {
	case "docker-image+blob":
	case "oci-layout+blob":
		if id, ok := git.Attrs[pb.AttrOCILayoutSessionID]; ok {
			bundle.Attrs[pb.AttrOCILayoutSessionID] = id
		}
		// A git source need not name the layout that a source of its own must name.
		if bundle.Attrs[pb.AttrOCILayoutStoreID] = git.Attrs[pb.AttrOCILayoutStoreID]; git.Attrs[pb.AttrOCILayoutStoreID] == "" {
			bundle.Attrs[pb.AttrOCILayoutStoreID], _, _ = strings.Cut(ref, "@")
		}
	default:
		return nil, fmt.Errorf("the bundle %q of %s is neither docker-image+blob:// nor oci-layout+blob://", locator, git.Identifier)
	}
	return &pb.Op{Op: &pb.Op_Source{Source: bundle}, Platform: op.Platform}, nil
}

// setBundle makes a git source read its bundle from what judges made of bundleOf.
func setBundle(git, bundle *pb.SourceOp) {
	git.Attrs[pb.AttrGitBundle] = bundle.Identifier
	for _, name := range []string{pb.AttrOCILayoutSessionID, pb.AttrOCILayoutStoreID} {
		if v, ok := bundle.Attrs[name]; ok {
			git.Attrs[name] = v
		} else {
			delete(git.Attrs, name)
		}
	}
}
