//go:build conformance

package conformance

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kiln-build/kiln/test/internal/peer"
)

// made is the time of everything in the images: well in the past, since cases
// compare it to that of what they build.
var made = time.Date(2023, 5, 19, 0, 0, 0, 0, time.UTC)

// fillMirror makes a registry's folder, dir, that holds an image for every name that
// the suites ask for: that of BuildKit's Dockerfile frontend, and behind all others
// Debian's busybox, in a root file system with what the cases look for.
func fillMirror(dir string, frontend v1.Image) error {
	r, err := peer.StartRegistry(dir)
	if err != nil {
		return err
	}
	defer r.Stop()
	busybox, err := busyboxRoot()
	if err != nil {
		return err
	}
	alpine, err := alpineRoot(busybox)
	if err != nil {
		return err
	}
	for _, i := range []struct {
		name string
		cmd  string
		root root
	}{
		{"library/busybox:latest", "sh", busybox},
		{"library/busybox:stable-musl", "sh", busybox},
		{"library/alpine:latest", "/bin/sh", alpine},
		{"library/alpine:3.21", "/bin/sh", alpine},
		{"amd64/debian:bullseye-20230109-slim", "bash", busybox.with(file("etc/os-release", 0o644, "ID=debian\nVERSION_ID=\"11\"\n"))},
		{"tonistiigi/test:nolayers", "sh", nil},
		{"tonistiigi/hellofs:latest", "sh", root{file("hellofs", 0o755, "#!/bin/sh\n")}},
		{"cpuguy83/buildkit-foreign:latest", "sh", busybox},
		{"moby/buildkit:buildx-stable-1", "sh", busybox},
		{"docker/buildkit-syft-scanner:stable-1", "/bin/scan", busybox.with(file("bin/scan", 0o755, scanner))},
	} {
		img, err := i.root.image(i.cmd)
		if err != nil {
			return fmt.Errorf("making the image %s: %w", i.name, err)
		}
		if err := peer.Push(img, r.Addr+"/"+i.name); err != nil {
			return fmt.Errorf("pushing the image %s: %w", i.name, err)
		}
	}
	if err := peer.Push(frontend, r.Addr+"/docker/dockerfile-upstream:1.18.0"); err != nil {
		return fmt.Errorf("pushing the image of the Dockerfile frontend: %w", err)
	}
	// What the suite starts its own registry with, in this folder.
	conf := fmt.Sprintf("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: 127.0.0.1:0\n", filepath.Join(dir, "data"))
	return os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(conf), 0o600)
}

// frontendFile is the image of BuildKit's Dockerfile frontend, as a tarball.
const frontendFile = "frontend.tar"

// frontendImage makes an image of BuildKit's Dockerfile frontend.
func frontendImage(program string) (v1.Image, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	img, err := root{folder("bin", 0o755), file("bin/dockerfile-frontend", 0o755, string(data))}.image("")
	if err != nil {
		return nil, err
	}
	conf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	conf = conf.DeepCopy()
	conf.Config.Cmd, conf.Config.Entrypoint = nil, []string{"/bin/dockerfile-frontend"}
	// As the published image has them: it needs no network, and what it can do is asked for before it runs.
	conf.Config.Labels = map[string]string{
		"moby.buildkit.frontend.network.none": "true",
		"moby.buildkit.frontend.caps":         "moby.buildkit.frontend.inputs,moby.buildkit.frontend.subrequests,moby.buildkit.frontend.contexts",
	}
	return mutate.ConfigFile(img, conf)
}

// scanner stands in for the program that lists an image's packages.
const scanner = `#!/bin/sh
for f in core ${BUILDKIT_SCAN_SOURCE_EXTRAS:+$(ls $BUILDKIT_SCAN_SOURCE_EXTRAS)}; do
	echo '{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","predicate":{"name":"'$f'","packages":[]}}' > $BUILDKIT_SCAN_DESTINATION/$f.spdx.json
done
`

// root is a root file system, as the entries of a tarball.
type root []entry

type entry struct {
	tar.Header
	data []byte
}

func file(name string, mode int64, data string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))}, []byte(data)}
}

func folder(name string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}}
}

// with gives the root with more in it.
func (r root) with(more ...entry) root { return append(r[:len(r):len(r)], more...) }

// image makes an image of one layer, or of none where the root is nil, in docker's
// media types, which the images that it stands for have.
func (r root) image(cmd string) (v1.Image, error) {
	img := empty.Image
	if r != nil {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		for _, e := range r {
			e.ModTime, e.Format = made, tar.FormatPAX
			if err := tw.WriteHeader(&e.Header); err != nil {
				return nil, err
			}
			if _, err := tw.Write(e.data); err != nil {
				return nil, err
			}
		}
		if err := tw.Close(); err != nil {
			return nil, err
		}
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
		if err != nil {
			return nil, err
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{Created: v1.Time{Time: made}, CreatedBy: "ADD root /"}}); err != nil {
			return nil, err
		}
	}
	conf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	conf = conf.DeepCopy()
	conf.OS, conf.Architecture, conf.Created = "linux", "amd64", v1.Time{Time: made}
	conf.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	conf.Config.Cmd = []string{cmd}
	if cmd == "/bin/scan" {
		conf.Config.Cmd, conf.Config.Entrypoint = nil, []string{cmd}
	}
	conf.History = append(conf.History, v1.History{Created: v1.Time{Time: made}, CreatedBy: "CMD " + cmd, EmptyLayer: true})
	return mutate.ConfigFile(img, conf)
}

// busyboxRoot is what most cases build on.
func busyboxRoot() (root, error) {
	program, applets, err := peer.BusyboxProgram()
	if err != nil {
		return nil, err
	}
	var r root
	for _, dir := range strings.Fields("bin dev etc home lib proc run sbin sys usr usr/bin usr/sbin var var/spool var/spool/mail var/www") {
		r = append(r, folder(dir, 0o755))
	}
	r = append(r, folder("tmp", 0o1777), folder("root", 0o700), file("bin/busybox", 0o755, string(program)))
	for _, applet := range applets {
		r = append(r, entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}})
	}
	return r.with(
		file("etc/passwd", 0o644, `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`),
		file("etc/group", 0o644, "root:x:0:\ndaemon:x:1:\nbin:x:2:\nwheel:x:10:root\nwww-data:x:33:\nusers:x:100:\nnobody:x:65534:\n"),
		file("etc/shadow", 0o644, "root:*:10933:0:99999:7:::\n"),
		// Debian's busybox is built without these three applets.
		file("bin/ttysize", 0o755, "#!/bin/sh\nset -- $(stty size)\necho $2 $1\n"),
		file("usr/sbin/adduser", 0o755, addUser),
		file("usr/sbin/addgroup", 0o755, addGroup),
	), nil
}

const addUser = `#!/bin/sh
uid=1000 group= shell=/bin/sh first= second=
while grep -q "^[^:]*:[^:]*:$uid:" /etc/passwd; do uid=$((uid+1)); done
while [ $# -gt 0 ]; do
	case $1 in
	-u) uid=$2; shift ;;
	-G) group=$2; shift ;;
	-h) home=$2; shift ;;
	-s) shell=$2; shift ;;
	-g) shift ;;
	-*) ;;
	*) if [ -z "$first" ]; then first=$1; else second=$1; fi ;;
	esac
	shift
done
if [ -n "$second" ]; then
	sed -i "s/^\($second:.*[^:]\)\$/\1,$first/; s/^\($second:.*:\)\$/\1$first/" /etc/group
	exit
fi
gid=$uid
if [ -n "$group" ]; then gid=$(grep "^$group:" /etc/group | cut -d: -f3); else echo "$first:x:$gid:" >> /etc/group; fi
home=${home:-/home/$first}
echo "$first:x:$uid:$gid::$home:$shell" >> /etc/passwd
mkdir -p "$home" && chown "$uid:$gid" "$home"
`

const addGroup = `#!/bin/sh
gid=1000 first= second=
while grep -q "^[^:]*:[^:]*:$gid:" /etc/group; do gid=$((gid+1)); done
while [ $# -gt 0 ]; do
	case $1 in
	-g) gid=$2; shift ;;
	-*) ;;
	*) if [ -z "$first" ]; then first=$1; else second=$1; fi ;;
	esac
	shift
done
[ -z "$second" ] || exec adduser "$first" "$second"
echo "$first:x:$gid:" >> /etc/group
`

// alpineRoot is busybox's with what marks Alpine, and with the programs that cases
// install there by apk: this machine's own.
func alpineRoot(busybox root) (root, error) {
	r := busybox.with(
		file("etc/alpine-release", 0o644, "3.18.6\n"),
		file("etc/os-release", 0o644, "NAME=\"Alpine Linux\"\nID=alpine\nVERSION_ID=3.18.6\n"),
		file("etc/motd", 0o644, "Welcome\n"),
		file("sbin/apk", 0o755, "#!/bin/sh\nexit 0\n"),
	)
	have := map[string]bool{}
	for _, e := range r {
		have[strings.TrimSuffix(e.Name, "/")] = true
	}
	add := func(name, from string) error {
		if have[name] {
			return nil
		}
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		var dirs []entry
		for dir := path.Dir(name); dir != "." && !have[dir]; dir = path.Dir(dir) {
			have[dir] = true
			dirs = append([]entry{folder(dir, 0o755)}, dirs...)
		}
		have[name] = true
		r = append(append(r, dirs...), file(name, 0o755, string(data)))
		return nil
	}
	if err := add("etc/ssl/certs/ca-certificates.crt", "/etc/ssl/certs/ca-certificates.crt"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, name := range []string{"git", "ssh", "ssh-add", "ssh-agent", "ssh-keygen", "ssh-keyscan", "curl"} {
		bin, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("looking for a program that cases run in steps: %w", err)
		}
		if err := add("usr/bin/"+name, bin); err != nil {
			return nil, err
		}
		libraries, err := exec.Command("ldd", bin).Output()
		if err != nil {
			return nil, fmt.Errorf("listing the libraries of %s: %w", bin, err)
		}
		for _, word := range strings.Fields(string(libraries)) {
			if strings.HasPrefix(word, "/") {
				if err := add(word[1:], word); err != nil {
					return nil, err
				}
			}
		}
	}
	return r, nil
}
