package dockerfile

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/buildkit/util/system"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// historyComment marks the history entries of images that are built this way.
// Tools that read histories know it.
const historyComment = "buildkit.dockerfile.v0"

// Image is the config of an image: OCI's, with Docker's fields besides
// (Healthcheck, OnBuild, Shell).
type Image = dockerspec.DockerOCIImage

// epoch is SOURCE_DATE_EPOCH: the time that everything made gets.
type epoch = time.Time

// emptyImage is the config of scratch.
func emptyImage(p ocispecs.Platform) Image {
	img := Image{}
	img.Platform = p
	img.OSFeatures = slices.Clone(p.OSFeatures)
	img.RootFS.Type = "layers"
	img.Config.WorkingDir = "/"
	if p.OS != "windows" {
		img.Config.Env = []string{"PATH=" + system.DefaultPathEnv(p.OS)}
	}
	return img
}

func parseImage(config []byte) (*Image, error) {
	var img Image
	if err := json.Unmarshal(config, &img); err != nil {
		return nil, fmt.Errorf("failed to parse image config: %w", err)
	}
	return &img, nil
}

// cloneImage copies img as deep as instructions change it.
func cloneImage(img *Image) *Image {
	out := *img
	c := &out.Config
	c.Env = slices.Clone(c.Env)
	c.Cmd = slices.Clone(c.Cmd)
	c.Entrypoint = slices.Clone(c.Entrypoint)
	c.OnBuild = slices.Clone(c.OnBuild)
	c.ExposedPorts = maps.Clone(c.ExposedPorts)
	c.Volumes = maps.Clone(c.Volumes)
	c.Labels = maps.Clone(c.Labels)
	c.Shell = slices.Clone(c.Shell)
	out.History = slices.Clone(out.History)
	return &out
}

// setEnv sets a variable in the config, in the place where it was.
func setEnv(img *Image, key, value string) {
	for i, kv := range img.Config.Env {
		k, _, _ := strings.Cut(kv, "=")
		if shell.EqualEnvKeys(k, key) {
			img.Config.Env[i] = key + "=" + value
			return
		}
	}
	img.Config.Env = append(img.Config.Env, key+"="+value)
}

// withShell puts the stage's shell in front of a command in shell form.
func withShell(img *Image, args []string) []string {
	sh := slices.Clone(img.Config.Shell)
	switch {
	case len(sh) > 0:
	case img.OS == "windows":
		sh = []string{"cmd", "/S", "/C"}
	default:
		sh = []string{"/bin/sh", "-c"}
	}
	return append(sh, strings.Join(args, " "))
}

// imageConfig is a config without what only the finished layers can say.
func imageConfig(img *Image) ([]byte, error) {
	out := *img
	out.RootFS = ocispecs.RootFS{Type: "layers"}
	dt, err := json.Marshal(&out)
	if err != nil {
		return nil, fmt.Errorf("failed to marshal image config: %w", err)
	}
	return dt, nil
}
