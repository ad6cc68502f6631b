package request

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestInputs(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "Other.Dockerfile")
	if err := os.WriteFile(file, []byte("FROM scratch\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The only layout that there is has one image, tagged v1.
	lookup := func(layout, tag string) (string, error) {
		if layout != dir || tag != "v1" {
			return "", errors.New("no such image")
		}
		return "sha256:v1", nil
	}
	for _, row := range []struct {
		name    string
		request Request
		attrs   map[string]string
		folders map[string]string
		fails   string
	}{
		{"a folder", Request{Context: dir}, nil, map[string]string{"context": dir, "dockerfile": dir}, ""},
		{"a folder that is not there", Request{Context: filepath.Join(dir, "none")}, nil, nil, "the build context"},
		{"a device for a folder", Request{Context: os.DevNull}, nil, nil, "is not a folder"},
		{"a file, called by its sha256", Request{Context: file, Dockerfile: "sub/File"},
			map[string]string{"context": "http://buildkit-session/bb57c7da220a8753d7bdabac0d3afdb6efa742e4c736c5bc93ab40dfd5e23b9b", "filename": "sub/File"}, nil, ""},
		{"a Dockerfile elsewhere", Request{Context: dir, Dockerfile: file}, map[string]string{"filename": "Other.Dockerfile"}, map[string]string{"context": dir, "dockerfile": dir}, ""},
		{"a Dockerfile that is not there", Request{Context: dir, Dockerfile: file + "x"}, nil, nil, "reading the Dockerfile"},
		{"its text", Request{Context: dir, DockerfileText: []byte("FROM scratch")}, nil, map[string]string{"context": dir}, ""},
		{"an address", Request{Context: "https://host/x.git", Dockerfile: "sub/File"}, map[string]string{"context": "https://host/x.git", "filename": "sub/File"}, nil, ""},
		{"a Dockerfile for an address", Request{Context: "https://host/x.git", Dockerfile: file},
			map[string]string{"context": "https://host/x.git", "filename": "Other.Dockerfile", "dockerfilekey": "dockerfile"}, map[string]string{"dockerfile": dir}, ""},
		{"its text for an address", Request{Context: "https://host/x.git", DockerfileText: []byte("FROM scratch")},
			map[string]string{"context": "https://host/x.git", "dockerfilekey": "dockerfile"}, nil, ""},
		{"contexts called as the main ones are", Request{Context: dir, Contexts: map[string]string{"_context": filepath.Dir(dir), "context": filepath.Dir(dir), "dockerfile": filepath.Dir(dir)}},
			map[string]string{"context:_context": "local:_context", "context:context": "local:__context", "context:dockerfile": "local:_dockerfile"},
			map[string]string{"context": dir, "dockerfile": dir, "_context": filepath.Dir(dir), "__context": filepath.Dir(dir), "_dockerfile": filepath.Dir(dir)}, ""},
		{"further contexts", Request{Context: "git@host:x", Contexts: map[string]string{"a": dir, "b": "docker-image://alpine", "c": "target:stage"}},
			map[string]string{"context": "git@host:x", "context:a": "local:a", "context:b": "docker-image://alpine", "context:c": "target:stage"}, map[string]string{"a": dir}, ""},
		{"a layout by tag", Request{Context: "git@host:x", Contexts: map[string]string{"l": "oci-layout://" + dir + ":v1"}},
			map[string]string{"context": "git@host:x", "context:l": "oci-layout://layout0@sha256:v1"}, nil, ""},
		{"a layout by digest", Request{Context: "git@host:x", Contexts: map[string]string{"l": "oci-layout://" + dir + "@sha256:other"}},
			map[string]string{"context": "git@host:x", "context:l": "oci-layout://layout0@sha256:other"}, nil, ""},
		{"a layout without that tag", Request{Context: "git@host:x", Contexts: map[string]string{"l": "oci-layout://" + dir + ":v2"}}, nil, nil, "the build context l: no such image"},
		{"words", Request{Context: "git@host:x", Target: "t", BuildArgs: map[string]string{"A": "1"}, Labels: map[string]string{"l": "2"}, Platforms: []string{"linux/arm64", "linux/amd64"},
			NoCacheFilter: []string{"s"}, Pull: true, Network: "none", AddHosts: []string{"h:1.2.3.4", "i=5"}, ShmSize: 7, Ulimits: []string{"nofile=1"}, CgroupParent: "c", Call: "lint",
			Attrs: map[string]string{"more": "m"}},
			map[string]string{"context": "git@host:x", "target": "t", "build-arg:A": "1", "label:l": "2", "platform": "linux/arm64,linux/amd64", "no-cache": "s", "image-resolve-mode": "pull",
				"force-network-mode": "none", "add-hosts": "h=1.2.3.4,i=5", "shm-size": "7", "ulimit": "nofile=1", "cgroup-parent": "c", "requestid": "frontend.lint", "more": "m"}, nil, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := row.request.Inputs(lookup)
			if row.fails != "" {
				if err == nil || !strings.Contains(err.Error(), row.fails) {
					t.Errorf("got %v, want an error with %q", err, row.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(got.Attrs, row.attrs) {
				t.Errorf("got the attributes %v, want %v", got.Attrs, row.attrs)
			}
			if !maps.Equal(got.Folders, row.folders) {
				t.Errorf("got the folders %v, want %v", got.Folders, row.folders)
			}
		})
	}
}
