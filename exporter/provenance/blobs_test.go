package provenance

import (
	"reflect"
	"testing"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/solver/pb"
)

// A blob is a material of its own, and so is a bundle beside the commit that came in it.
func TestBlobMaterials(t *testing.T) {
	bundled := map[string]string{pb.AttrGitBundle: "oci-layout+blob://not/real@" + imageDigest, pb.AttrGitChecksum: commit}
	c := &Capture{}
	for _, e := range []llb.Edge{
		from(t, "docker-image+blob://example.com:5000/a/b@"+imageDigest, nil),
		from(t, "docker-image+blob://example.com:5000/a/b@"+imageDigest, map[string]string{pb.AttrHTTPFilename: "f"}), // the same blob
		from(t, "oci-layout+blob://docker.io/not/real@"+imageDigest, map[string]string{pb.AttrOCILayoutStoreID: "s"}),
		from(t, "git://example.com/repo.git#main", bundled),
		from(t, "git://example.com/repo.git#main", nil),
	} {
		c.Add(pins(e), e)
	}
	c.tidy()
	got, err := c.materials()
	want := []Material{
		{"pkg:oci/not/real?digest=" + imageDigest + "&ref_type=blob", digestSet(imageDigest)},
		{"pkg:docker/example.com%3A5000/a/b?digest=" + imageDigest + "&ref_type=blob", digestSet(imageDigest)},
		{"https://example.com/repo.git#main", map[string]string{"sha1": commit}},
		{"pkg:oci/not/real?digest=" + imageDigest + "&ref_type=bundle&vcs_url=https:%2F%2Fexample.com%2Frepo.git%23main", digestSet(imageDigest)},
		{"https://example.com/repo.git#main", map[string]string{"sha1": commit}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, %v\nwant %q", got, err, want)
	}
}
