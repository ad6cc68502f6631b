package executor

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tree lists what a folder holds, each path with its kind and, of files, the content.
func tree(t testing.TB, dir string) string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		switch {
		case d.IsDir():
			rel += "/"
			var b [8]byte
			if n, err := unix.Lgetxattr(p, "trusted.overlay.opaque", b[:]); err == nil && string(b[:n]) == "y" {
				rel += " opaque"
			}
		case d.Type()&fs.ModeCharDevice != 0:
			rel += " whiteout"
		case d.Type().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			rel += fmt.Sprintf("=%s", b)
		}
		list = append(list, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}

// files makes a folder that holds what it is given: names ending in "/" are
// folders, values that begin with "->" links.
func files(t testing.TB, content map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, c := range content {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch target, link := strings.CutPrefix(c, "->"); {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(p, 0o755)
		case link:
			err = os.Symlink(target, p)
		default:
			err = os.WriteFile(p, []byte(c), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// What a step leaves in its upper folder is a layer in overlayfs form, and holds
// what the step did and nothing else.
func TestUpper(t *testing.T) {
	n := newNative(t)
	low := files(t, map[string]string{"d/a": "1", "d/b": "2", "d/c/x": "3", "f": "old"})
	source := files(t, map[string]string{"s": "secret"})
	bind := func(dest string) []Mount { return []Mount{{Dest: dest, Source: source}} }
	file := func(dest string) []Mount { return []Mount{{Dest: dest, Source: source + "/s", ReadOnly: true}} }
	cases := []struct {
		name      string
		mounts    []Mount
		recursive bool
		script    string
		want      string
	}{
		{"nothing", nil, false, "true", ""},
		{"a file", nil, false, "echo -n hi >/new", "new=hi"},
		{"a change", nil, false, "echo -n new >/f", "f=new"},
		{"whiteout", nil, false, "rm /d/a", "d/\nd/a whiteout"},
		{"opaque", nil, false, "rm -r /d; mkdir /d; echo -n n >/d/n", "d/ opaque\nd/n=n"},
		{"moved folder is whole", nil, false, "mv /d /e", "d whiteout\ne/\ne/a=1\ne/b=2\ne/c/\ne/c/x=3"},
		{"/etc of the image", nil, false, "echo -n x >/etc/x", "etc/\netc/x=x"},
		{"mount points that were there", bind("/d"), false, "cat /d/s >/dev/null", ""},
		{"stub", bind("/mnt"), false, "cat /mnt/s >/dev/null", ""},
		{"stub in a folder of the image", bind("/d/c/new"), false, "cat /d/c/new/s >/dev/null", ""},
		{"stub of a file", file("/d/key"), false, "cat /d/key >/dev/null", ""},
		{"parents stay", bind("/m/n/o"), false, "cat /m/n/o/s >/dev/null", "m/\nm/n/"},
		{"parents go", bind("/m/n/o"), true, "cat /m/n/o/s >/dev/null", ""},
		{"parents that are used stay", bind("/m/n/o"), true, "echo -n 1 >/m/one", "m/\nm/one=1"},
		{"what the step writes beside stays", bind("/d/new"), false, "echo -n 1 >/d/one", "d/\nd/one=1"},
		{"a folder that the step changed stays", bind("/d/new"), false, "chmod 700 /d", "d/"},
		{"mounts in mounts", []Mount{{Dest: "/m", Tmpfs: &Tmpfs{}}, {Dest: "/m/x/y", Source: source}}, true, "cat /m/x/y/s >/dev/null", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := onLayers(t, []string{busybox, low}, "/bin/busybox", "sh", "-ec", c.script)
			s.Mounts, s.StubsRecursive = c.mounts, c.recursive
			if out, err := output(t, n, s); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if got := tree(t, s.Root.Upper); got != c.want {
				t.Errorf("the upper folder holds\n%s\nwant\n%s", got, c.want)
			}
		})
	}
	if got := tree(t, source); got != "s=secret" {
		t.Errorf("the source holds %s", got)
	}
	checkNothingLeft(t)
}

// A root of nothing at all: only what the step writes is in the layer.
func TestScratch(t *testing.T) {
	n := newNative(t)
	s := onLayers(t, nil, "/b/busybox", "sh", "-c", "/b/busybox ls /; /b/busybox touch /new")
	s.Mounts = []Mount{{Dest: "/b", Source: filepath.Join(busybox, "bin"), ReadOnly: true}}
	out, err := output(t, n, s)
	if err != nil || out != "b\ndev\netc\nproc\nsys\n" {
		t.Errorf("%q, %v", out, err)
	}
	if got := tree(t, s.Root.Upper); got != "new=" {
		t.Errorf("the upper folder holds %s", got)
	}
}

// Making and removing a stub leaves the times of the folder around it alone.
func TestStubTimes(t *testing.T) {
	n := newNative(t)
	low := files(t, map[string]string{"d/a": ""})
	old := time.Unix(1000000000, 0)
	if err := os.Chtimes(filepath.Join(low, "d"), old, old); err != nil {
		t.Fatal(err)
	}
	s := onLayers(t, []string{busybox, low}, "/bin/busybox", "sh", "-c", "stat -c %Y /d; chmod 711 /d")
	s.Mounts = []Mount{{Dest: "/d/stub", Tmpfs: &Tmpfs{}}}
	out, err := output(t, n, s)
	if err != nil || out != "1000000000\n" {
		t.Errorf("the step sees %q, %v", out, err)
	}
	if st, err := os.Stat(filepath.Join(s.Root.Upper, "d")); err != nil || !st.ModTime().Equal(old) {
		t.Errorf("the layer has %v, %v", st, err)
	}
}

func TestMounts(t *testing.T) {
	n := newNative(t)
	dir := files(t, map[string]string{"a/b/c": "deep", "top": "1", "link": "->a/b", "out": "->/etc", "up": "->../../../../etc"})
	upper, work := t.TempDir(), t.TempDir()
	over := Overlay{Lower: []string{dir}, Upper: upper, Work: work}
	cases := []struct {
		name   string
		mount  Mount
		script string
		want   string
	}{
		{"source", Mount{Source: dir}, "cat /m/top", "1"},
		{"source is writable", Mount{Source: dir}, "echo 1 >/m/top; cat /m/top", "1"},
		{"read-only source", Mount{Source: dir, ReadOnly: true}, "echo 2 2>&1 >/m/top; cat /m/top", "sh: can't create /m/top: Read-only file system\n1"},
		{"selector", Mount{Source: dir, Selector: "/a/b"}, "ls /m", "c"},
		{"selector through a link", Mount{Source: dir, Selector: "link"}, "ls /m", "c"},
		{"file", Mount{Source: dir, Selector: "a/b/c"}, "cat /m", "deep"},
		{"overlay", Mount{Overlay: &over}, "cat /m/a/b/c", "deep"},
		{"overlay's selector", Mount{Overlay: &over, Selector: "a/b", ReadOnly: true}, "cat /m/c; touch /m/x 2>&1", "deeptouch: /m/x: Read-only file system"},
		{"overlay of one layer", Mount{Overlay: &Overlay{Lower: []string{dir}}}, "touch /m/x 2>&1; cat /m/a/b/c", "touch: /m/x: Read-only file system\ndeep"},
		{"overlay of nothing", Mount{Overlay: &Overlay{}}, "ls -A /m", ""},
		{"tmpfs", Mount{Tmpfs: &Tmpfs{Size: 1 << 20, Mode: 0o700}}, "stat -c %a /m; df -k /m | tail -n1 | awk '{print $1, $2}'", "700\ntmpfs 1024"},
		{"tmpfs by default", Mount{Tmpfs: &Tmpfs{}}, "stat -c %a /m", "1777"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			os.RemoveAll(filepath.Join(work, "work"))
			s := shell(t, c.script)
			c.mount.Dest = "/m"
			s.Mounts = []Mount{c.mount}
			out, err := output(t, n, s)
			if got := strings.TrimSpace(out); got != c.want {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

// A selector cannot leave its source.
func TestSelectorStaysInside(t *testing.T) {
	n := newNative(t)
	dir := files(t, map[string]string{"etc/mine": "", "out": "->/etc", "up": "->../../../../etc"})
	for _, selector := range []string{"out", "up", "../../../etc", "/etc"} {
		for _, m := range []Mount{{Source: dir}, {Overlay: &Overlay{Lower: []string{dir}}}} {
			m.Dest, m.Selector = "/m", selector
			s := shell(t, "ls /m")
			s.Mounts = []Mount{m}
			if out, err := output(t, n, s); err != nil || out != "mine\n" {
				t.Errorf("selector %s: %q, %v", selector, out, err)
			}
		}
	}
}

func TestReadOnlyRoot(t *testing.T) {
	n := newNative(t)
	for _, upper := range []bool{true, false} {
		s := shell(t, "touch /x 2>&1; touch /tmp/x /m/x && echo ok")
		s.Root.ReadOnly = true
		s.Mounts = []Mount{{Dest: "/tmp", Tmpfs: &Tmpfs{}}}
		if upper {
			s.Mounts = append(s.Mounts, Mount{Dest: "/m", Tmpfs: &Tmpfs{}})
		} else {
			s.Args[3] = "touch /x 2>&1; touch /tmp/x && echo ok"
			s.Root.Upper, s.Root.Work = "", ""
		}
		out, err := output(t, n, s)
		if err != nil || out != "touch: /x: Read-only file system\nok\n" {
			t.Errorf("upper %v: %q, %v", upper, out, err)
		}
		if upper && tree(t, s.Root.Upper) != "" {
			t.Errorf("the upper folder holds %s", tree(t, s.Root.Upper))
		}
	}
}

// An image's own links cannot lead kiln to the host: mounts and stubs stay in
// the root, or are refused.
func TestHostileImage(t *testing.T) {
	n := newNative(t)
	host := t.TempDir() // stands for a folder of the host
	canary := filepath.Join(host, "canary")
	if err := os.WriteFile(canary, []byte("safe"), 0o644); err != nil {
		t.Fatal(err)
	}
	source := files(t, map[string]string{"s": "x"})
	cases := []struct {
		name  string
		image map[string]string
		dest  string
		user  string
		cwd   string
		want  string // in the error; empty is success
	}{
		{"/proc is a link", map[string]string{"proc": "->" + host}, "", "", "", "finding /proc"},
		{"/sys is a link", map[string]string{"sys": "->/bin"}, "", "", "", "finding /sys"},
		{"/dev is a link", map[string]string{"dev": "->" + host}, "", "", "", "/dev"},
		{"/proc is a file", map[string]string{"proc": "x"}, "", "", "", "finding /proc in the root: not a directory"},
		{"/etc is a link to the host", map[string]string{"etc": "->" + host}, "", "", "", ""},
		{"/etc is a link upwards", map[string]string{"etc": "->../../../../../.." + host}, "", "", "", ""},
		{"/etc is a loop", map[string]string{"etc": "->/etc"}, "", "", "", "too many levels of symbolic links"},
		{"resolv.conf is a link", map[string]string{"etc/resolv.conf": "->" + canary}, "", "", "", ""},
		{"resolv.conf is a folder", map[string]string{"etc/resolv.conf/": ""}, "", "", "", "/etc/resolv.conf: is a directory"},
		{"mount through a link", map[string]string{"m": "->" + host}, "/m/a/b", "", "", ""},
		{"mount through a dangling link", map[string]string{"m": "->../.." + host + "/new"}, "/m", "", "", ""},
		{"mount through /proc", nil, "/proc/self/cwd/x", "", "", "mounting /proc/self/cwd/x"},
		{"working folder through a link", map[string]string{"w": "->" + host}, "", "", "/w/a", ""},
		{"working folder through /proc", nil, "", "", "/proc/self/fd/5", "working folder /proc/self/fd/5"},
		{"passwd is a link", map[string]string{"etc/passwd": "->/../../../../etc/shadow"}, "", "ann", "", "not in the image's /etc/passwd"},
		{"passwd is a fifo", map[string]string{"etc/passwd": "fifo"}, "", "ann", "", "not a regular file"},
		{"passwd is a device", map[string]string{"etc/passwd": "->/dev/zero"}, "", "ann", "", "not in the image's /etc/passwd"},
		{"passwd is huge", map[string]string{"etc/passwd": strings.Repeat("x", maxUserFile+1)}, "", "ann", "", "larger than"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.image["etc/passwd"] == "fifo" {
				c.image = map[string]string{"etc/": ""}
			}
			image := files(t, c.image)
			if strings.HasSuffix(c.name, "fifo") {
				if err := unix.Mkfifo(filepath.Join(image, "etc/passwd"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			s := onLayers(t, []string{filepath.Join(busybox, "bin"), image}, "/busybox", "true")
			if c.dest != "" {
				s.Mounts = []Mount{{Dest: c.dest, Source: source}}
			}
			s.User, s.Cwd = c.user, c.cwd
			out, err := output(t, n, s)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q\n%s", err, c.want, out)
			}
			if got := tree(t, host); got != "canary=safe" {
				t.Fatalf("the host's folder holds %s", got)
			}
		})
	}
	checkNothingLeft(t)
}

// A step that puts links where a stub was made cannot lead its removal astray.
func TestHostileStep(t *testing.T) {
	n := newNative(t)
	host := files(t, map[string]string{"d/": "", "e/d/": ""})
	s := shell(t, "umount /m/d 2>/dev/null; mkdir /x; mv /m /x/m 2>/dev/null; rm -rf /m 2>/dev/null; ln -s "+host+" /m 2>/dev/null; true")
	s.Mounts = []Mount{{Dest: "/m/d", Tmpfs: &Tmpfs{}}}
	s.StubsRecursive = true
	if out, err := output(t, n, s); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	// What a step cannot do today another mount in the same cache folder might: do it by hand.
	b := &box{n: n, s: &s, stubs: []stub{{upper: s.Root.Upper, name: "/l/d"}, {upper: s.Root.Upper, name: "/l/e/d"}}}
	if err := os.Symlink(host, filepath.Join(s.Root.Upper, "l")); err != nil {
		t.Fatal(err)
	}
	b.removeStubs()
	if got := tree(t, host); got != "d/\ne/\ne/d/" {
		t.Errorf("the host's folder holds %s", got)
	}
}

// Many layers, with short names and with names longer than fsconfig takes, and on
// kernels that want all of them in one string.
func TestManyLayers(t *testing.T) {
	n := newNative(t)
	top := t.TempDir()
	long := filepath.Join(top, strings.Repeat("l", 200), strings.Repeat("m", 200))
	for _, c := range []struct {
		name, dir string
		layers    int
		old       bool
	}{
		{"short names", top, 498, false},
		{"long names", long, 100, false},
		{"old kernel", top, 498, true},
		{"old kernel, long names", long, 400, true},
		{"names with special characters", filepath.Join(top, `a,b:c\d`), 3, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLowerdirPlus.Store(c.old)
			defer noLowerdirPlus.Store(false)
			lower := []string{busybox}
			for i := range c.layers {
				dir := filepath.Join(c.dir, fmt.Sprintf("layer%d", i))
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", i)), nil, 0o644); err != nil {
					t.Fatal(err)
				}
				lower = append(lower, dir)
			}
			s := onLayers(t, lower, "/bin/busybox", "sh", "-c", "ls / | grep -c ^f; echo hi >/new; cat /proc/mounts | head -n1 | cut -c1-14")
			out, err := output(t, n, s)
			if want := fmt.Sprintf("%d\noverlay / over\n", c.layers); err != nil || out != want {
				t.Errorf("got %q, %v; want %q", out, err, want)
			}
			if got := tree(t, s.Root.Upper); got != "new=hi\n" {
				t.Errorf("the upper folder holds %s", got)
			}
		})
	}
	s := onLayers(t, slices.Repeat([]string{busybox}, maxLayers), "/bin/busybox")
	if _, err := output(t, n, s); err == nil || !strings.Contains(err.Error(), "the kernel takes 500 at most") {
		t.Errorf("too many layers: %v", err)
	}
}
