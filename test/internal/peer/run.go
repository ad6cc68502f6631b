package peer

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Open gives the image of an OCI tarball, having skopeo read it first: whatever
// skopeo refuses is refused here. The image is kept in a folder below dir.
func Open(tarball, dir string) (v1.Image, error) {
	dir, err := os.MkdirTemp(dir, ".image-")
	if err != nil {
		return nil, err
	}
	if out, err := exec.Command("skopeo", "copy", "--quiet", "oci-archive:"+tarball, "oci:"+dir+":image").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("skopeo: %w\n%s", err, out)
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Manifests) != 1 {
		return nil, fmt.Errorf("%s holds %d images", tarball, len(manifest.Manifests))
	}
	return index.Image(manifest.Manifests[0].Digest)
}

// Files lists what the image's layers make together, a line a path.
func Files(img v1.Image) ([]string, error) {
	r := mutate.Extract(img)
	defer r.Close()
	var lines []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			sort.Strings(lines)
			return lines, nil
		}
		if err != nil {
			return nil, err
		}
		line := fmt.Sprintf("%s %c %04o %d:%d", filepath.Join("/", h.Name), h.Typeflag, h.Mode&0o7777, h.Uid, h.Gid)
		switch h.Typeflag {
		case tar.TypeReg:
			line += fmt.Sprintf(" %d", h.Size)
		case tar.TypeSymlink, tar.TypeLink:
			line += " -> " + h.Linkname
		}
		lines = append(lines, line)
	}
}

// Run unpacks the image of an OCI tarball and runs it by crun: with args in place
// of its command, if there are any. It gives what the process printed.
func Run(tarball string, args []string) (string, error) {
	bundle, err := os.MkdirTemp("", "kiln-bundle-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(bundle)
	img, err := Open(tarball, bundle)
	if err != nil {
		return "", err
	}
	root := filepath.Join(bundle, "rootfs")
	if err := os.Mkdir(root, 0o755); err != nil {
		return "", err
	}
	r := mutate.Extract(img)
	defer r.Close()
	untar := exec.Command("tar", "-C", root, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", "-")
	untar.Stdin = r
	if out, err := untar.CombinedOutput(); err != nil {
		return "", fmt.Errorf("unpacking: %w\n%s", err, out)
	}
	if err := writeSpec(img, bundle, args); err != nil {
		return "", err
	}
	// crun wants the unified hierarchy of cgroups, which machines with the older
	// ones can show it in a mount namespace of its own.
	const run = `mount --make-rprivate / && umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup &&
		exec crun --cgroup-manager=disabled run --bundle "$1" "$2"`
	cmd := exec.Command("unshare", "--mount", "sh", "-c", run, "crun", bundle, filepath.Base(bundle))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// writeSpec gives crun a default spec, changed by the image's config as docker does.
func writeSpec(img v1.Image, bundle string, args []string) error {
	file, err := img.ConfigFile()
	if err != nil {
		return err
	}
	if out, err := exec.Command("crun", "spec", "--bundle", bundle).CombinedOutput(); err != nil {
		return fmt.Errorf("crun spec: %w\n%s", err, out)
	}
	conf := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(conf)
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	c := file.Config
	if len(args) == 0 {
		args = c.Cmd
	}
	spec.Process.Args = append(append([]string{}, c.Entrypoint...), args...)
	spec.Process.Env = c.Env
	spec.Process.Terminal = false
	spec.Root.Readonly = false
	spec.Linux.Resources, spec.Linux.CgroupsPath = nil, ""
	if c.WorkingDir != "" {
		spec.Process.Cwd = c.WorkingDir
	}
	if spec.Process.User, err = user(filepath.Join(bundle, "rootfs"), c.User); err != nil {
		return err
	}
	if data, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(conf, data, 0o644)
}

// user looks a user up, by number or in the image's own file.
func user(root, name string) (u specs.User, err error) {
	if n, _ := fmt.Sscanf(name, "%d:%d", &u.UID, &u.GID); n > 0 || name == "" {
		return u, nil
	}
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(passwd)) {
		f := strings.Split(line, ":")
		if len(f) < 4 || f[0] != name {
			continue
		}
		_, err := fmt.Sscan(f[2]+" "+f[3], &u.UID, &u.GID)
		return u, err
	}
	return u, fmt.Errorf("the image has no user %q", name)
}
