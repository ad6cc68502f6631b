package peer

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// when is the time of everything in the images made here.
var when = time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)

const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Busybox makes an image of Debian's static busybox, with a link for each applet.
func Busybox() (v1.Image, error) {
	data, err := BusyboxTar()
	if err != nil {
		return nil, err
	}
	return image([]string{"sh"}, data)
}

// BusyboxProgram gives Debian's static busybox, and the names of its applets in order,
// its own left out.
func BusyboxProgram() (program []byte, applets []string, err error) {
	bin, err := exec.LookPath("busybox")
	if err != nil {
		return nil, nil, fmt.Errorf("looking for busybox (`make deps` installs it): %w", err)
	}
	list, err := exec.Command(bin, "--list").Output()
	if err != nil {
		return nil, nil, fmt.Errorf("asking %s for its applets: %w", bin, err)
	}
	applets = slices.DeleteFunc(strings.Fields(string(list)), func(name string) bool { return name == "busybox" })
	slices.Sort(applets)
	program, err = os.ReadFile(bin)
	return program, applets, err
}

// BusyboxTar gives the root file system of Busybox as a tarball.
func BusyboxTar() ([]byte, error) {
	program, applets, err := BusyboxProgram()
	if err != nil {
		return nil, err
	}
	w := newTarWriter()
	for _, dir := range []string{"bin/", "dev/", "etc/", "home/", "proc/", "root/", "sys/", "usr/", "usr/bin/", "var/"} {
		w.add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	w.add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	w.add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program)
	for _, a := range applets {
		w.add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + a, Linkname: "busybox", Mode: 0o777}, nil)
	}
	w.add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nalice:x:1000:1000:Alice:/home/alice:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"))
	w.add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\ndaemon:x:1:\nwheel:x:10:alice\naudio:x:29:alice\nalice:x:1000:\nnobody:x:65534:\n"))
	return w.bytes()
}

// Foreign gives the folder in which `make deps` keeps an emulator of arm64 and a
// busybox for it.
func Foreign() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "kiln-test", "arm64")
	if _, err := os.Stat(filepath.Join(dir, "busybox")); err != nil {
		return "", fmt.Errorf("looking for a program for arm64 (`make deps` fetches it): %w", err)
	}
	return dir, nil
}

// Debian makes an image of the root file system that `make deps` keeps.
func Debian() (v1.Image, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "kiln-test", "bookworm.tar")
	layer, err := tarball.LayerFromFile(file, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("reading the Debian base (`make deps` makes it): %w", err)
	}
	return config([]string{"bash"}, layer)
}

// image makes an image of one layer for each tarball.
func image(cmd []string, tarballs ...[]byte) (v1.Image, error) {
	var layers []v1.Layer
	for _, data := range tarballs {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data)), nil
		}, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	return config(cmd, layers...)
}

func config(cmd []string, layers ...v1.Layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range layers {
		var err error
		img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{Created: v1.Time{Time: when}, CreatedBy: "base"}})
		if err != nil {
			return nil, err
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Architecture, file.OS, file.Created = "amd64", "linux", v1.Time{Time: when}
	file.Config.Cmd, file.Config.Env = cmd, []string{path}
	return mutate.ConfigFile(img, file)
}

// Push puts an image into a registry on this machine.
func Push(img v1.Image, ref string) error {
	n, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(n, img)
}

// tarWriter makes a tarball in memory; the first error is given at the end.
type tarWriter struct {
	buf bytes.Buffer
	tw  *tar.Writer
	err error
}

func newTarWriter() *tarWriter {
	w := &tarWriter{}
	w.tw = tar.NewWriter(&w.buf)
	return w
}

func (w *tarWriter) add(h tar.Header, data []byte) {
	h.Size, h.ModTime, h.Format = int64(len(data)), when, tar.FormatPAX
	if w.err == nil {
		w.err = w.tw.WriteHeader(&h)
	}
	if w.err == nil {
		_, w.err = w.tw.Write(data)
	}
}

func (w *tarWriter) bytes() ([]byte, error) {
	if w.err == nil {
		w.err = w.tw.Close()
	}
	return w.buf.Bytes(), w.err
}
