package source

import (
	"strings"
	"testing"
)

// An image that is here is had by its digest from the repository that gave it, and
// without asking; who names another one has to have it from there.
func TestDigestOrigin(t *testing.T) {
	proxy, p := start(t)
	d := p.image("v1", testImage{layers: [][]byte{testTar(t, "a=1")}})
	s := NewImages(openCache(t, t.TempDir()), client(), ImagesOptions{})
	if _, err := s.Resolve(t.Context(), nil, p.repo+":v1", amd64, ModeDefault); err != nil {
		t.Fatal(err)
	}
	proxy.Break(nil)
	if _, err := s.Resolve(t.Context(), nil, p.repo+"@"+d.Digest.String(), amd64, ModeDefault); err != nil {
		t.Fatal(err)
	}
	if log := proxy.Log(); len(log) != 0 {
		t.Errorf("a digest that the repository gave before took the requests %q", log)
	}
	other := strings.TrimSuffix(p.repo, "/app") + "/other@" + d.Digest.String()
	if img, err := s.Resolve(t.Context(), nil, other, amd64, ModeDefault); err == nil {
		t.Errorf("a repository that does not have the image gave %s", img.Digest)
	}
}
