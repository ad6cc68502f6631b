package gateway

import "testing"

func TestLimits(t *testing.T) {
	only := Limits{Repositories: []string{"docker/dockerfile", "registry.example:5000/front"}}
	for _, row := range []struct {
		limits       Limits
		name, source string
		fine         bool
	}{
		{Limits{}, ImageFrontend, "anything/at:all", true},
		{Limits{NoDockerfile: true}, DockerfileFrontend, "", false},
		{Limits{NoDockerfile: true}, ImageFrontend, "a", true},
		{Limits{NoImages: true}, ImageFrontend, "a", false},
		{Limits{NoImages: true}, DockerfileFrontend, "", true},
		{only, ImageFrontend, "docker.io/docker/dockerfile:1.7", true},             // the same, written out
		{only, ImageFrontend, "registry.example:5000/front@sha256:" + zeros, true}, // by digest
		{only, ImageFrontend, "docker/dockerfile-upstream", false},                 // not by a prefix
		{only, ImageFrontend, "registry.example:5000/front/other", false},          // nor below
		{only, ImageFrontend, "elsewhere.example/docker/dockerfile", false},        // of another host
		{only, ImageFrontend, "UPPER CASE", false},                                 // no name
		{only, DockerfileFrontend, "", true},                                       // in no image
	} {
		if err := row.limits.Check(row.name, row.source); (err == nil) != row.fine {
			t.Errorf("%+v, %s %s: got %v, want it allowed: %v", row.limits, row.name, row.source, err, row.fine)
		}
	}
}

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"
