package executor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Names of users are looked up outside of the sandbox: a device that stands where
// /etc/passwd should must not be opened there.
func TestDeviceAsUserFile(t *testing.T) {
	n := newNative(t)
	for _, c := range []struct {
		name, file, user string
		kind             uint32
		dev              uint64
	}{
		// Opening the null device would succeed, and is seen by what is said of it.
		{"passwd", "etc/passwd", "ann", unix.S_IFCHR, unix.Mkdev(1, 3)},
		{"group", "etc/group", "0:wheel", unix.S_IFCHR, unix.Mkdev(1, 3)},
		// A driver that there is not says so (ENXIO) when it is asked.
		{"no driver", "etc/passwd", "ann", unix.S_IFBLK, unix.Mkdev(254, 254)},
		{"a socket", "etc/passwd", "ann", unix.S_IFSOCK, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := files(t, map[string]string{"etc/": ""})
			if err := unix.Mknod(filepath.Join(image, c.file), c.kind|0o644, int(c.dev)); err != nil {
				t.Fatal(err)
			}
			s := onLayers(t, []string{filepath.Join(busybox, "bin"), image}, "/busybox", "true")
			s.User = c.user
			_, err := output(t, n, s)
			if want := "reading the image's /" + c.file + ": not a regular file"; err == nil || err.Error() != want {
				t.Errorf("got %v, want %q", err, want)
			}
		})
	}
}

// The same holds for a process that enters where another one has changed the files.
func TestEnterWithDeviceAsUserFile(t *testing.T) {
	n := newNative(t)
	s, _ := startShared(t, n, func(s *Spec) {
		s.Args = []string{"/bin/busybox", "sh", "-c", "rm /etc/passwd; mknod /etc/passwd c 1 3; mkfifo /tmp/go; read x < /tmp/go"}
	})
	if out, err := enter(t, n, s.ID, "until [ -p /tmp/go ]; do sleep 0.01; done", nil); err != nil && !strings.Contains(err.Error(), "not a regular file") {
		t.Fatal(err, out)
	}
	for {
		_, err := enter(t, n, s.ID, "true", func(s *Spec) { s.User = "ann" })
		if err == nil {
			continue // the first process has not come so far yet
		}
		if !strings.Contains(err.Error(), "reading the image's /etc/passwd: not a regular file") {
			t.Errorf("got %v", err)
		}
		return
	}
}

// A file of the kernel's that stands where /etc/passwd should is not read, whatever it
// would say: some never end. The one of /proc says here what the sandbox wants it to.
func TestEnterWithKernelsUserFile(t *testing.T) {
	n := newNative(t)
	for _, c := range []struct{ name, target, want string }{
		{"of /proc", "/proc/1/cmdline", `user "mallory" is not in the image's /etc/passwd`},
		{"of /sys", "/sys/devices/system/cpu/online", "reading the image's /etc/passwd: not a regular file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := startShared(t, n, func(s *Spec) {
				script := "ln -sf " + c.target + " /etc/passwd; mkfifo /tmp/go; read x < /tmp/go\nmallory:x:7:7::/:/bin/sh\n"
				s.Args = []string{"/bin/busybox", "sh", "-c", script}
			})
			// Where the link is there already, not even root enters by way of /sys.
			if out, err := enter(t, n, s.ID, "until [ -p /tmp/go ]; do sleep 0.01; done", nil); err != nil && !strings.Contains(err.Error(), c.want) {
				t.Fatal(err, out)
			}
			if _, err := enter(t, n, s.ID, "true", func(s *Spec) { s.User = "mallory" }); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// Users of a file that is a mount, or in one, are found by those who enter, too.
func TestEnterWithMountedUserFile(t *testing.T) {
	n := newNative(t)
	dir := files(t, map[string]string{"passwd": "bob:x:70:71::/home/bob:/bin/sh\n", "group": "bobs:x:71:\n"})
	for _, c := range []struct {
		name  string
		mount Mount
	}{
		{"the file", Mount{Dest: "/etc/passwd", Source: filepath.Join(dir, "passwd"), ReadOnly: true}},
		{"its folder", Mount{Dest: "/etc", Source: dir, ReadOnly: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := startShared(t, n, func(s *Spec) { s.Mounts = []Mount{c.mount} })
			got, err := enter(t, n, s.ID, "id -u; id -g", func(s *Spec) { s.User = "bob" })
			if err != nil || got != "70\n71" {
				t.Errorf("got %q, %v; want the user of the mount", got, err)
			}
		})
	}
}

// Where no cgroup keeps a process from devices, those of an image and of a mount
// cannot be used, and none can be made.
func TestDevicesWithoutCgroup(t *testing.T) {
	n := newNative(t)
	n.cgroups.Close()
	n.cgroups = nil
	device := func(name string) string {
		dir := files(t, map[string]string{"x/": ""})
		if err := unix.Mknod(filepath.Join(dir, "x", name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for _, c := range []struct{ name, script, want string }{
		{"of the image", "head -c1 /x/image", "head: /x/image: Permission denied\n"},
		{"of a mount", "head -c1 /m/x/mount", "head: /m/x/mount: Permission denied\n"},
		{"of an overlay", "head -c1 /o/overlay", "head: /o/overlay: Permission denied\n"},
		{"made", "mknod /y c 1 5", "mknod: /y: Operation not permitted\n"},
		{"of its own", "head -c1 /dev/zero | wc -c", "1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := onLayers(t, []string{busybox, device("image")}, "/bin/busybox", "sh", "-c", c.script)
			s.Mounts = []Mount{{Dest: "/m", Source: device("mount")}, {Dest: "/o", Overlay: &Overlay{Lower: []string{device("overlay")}}, Selector: "x"}}
			if out, _ := output(t, n, s); out != c.want {
				t.Errorf("got %q, want %q", out, c.want)
			}
		})
	}
}

// Strings that a graph may hold, and the kernel may not like.
func TestHostileStrings(t *testing.T) {
	n := newNative(t)
	for _, c := range []struct {
		name   string
		change func(*Spec)
		script string
		out    string
		err    string // in the error
	}{
		{name: "a working folder with a newline", change: func(s *Spec) { s.Cwd = "/a\nb" }, script: "pwd", out: "/a\nb\n"},
		{name: "a working folder with a zero byte", change: func(s *Spec) { s.Cwd = "/tmp\x00/x" }, err: "invalid argument"},
		{name: "a working folder that is too long", change: func(s *Spec) { s.Cwd = "/" + strings.Repeat("a", 300) }, err: "file name too long"},
		{name: "a mount with a newline", change: func(s *Spec) { s.Mounts = []Mount{{Dest: "/a\nb", Tmpfs: &Tmpfs{}}} }, script: "grep -c 'a.012b' /proc/mounts", out: "1\n"},
		{name: "an argument with a zero byte", change: func(s *Spec) { s.Args[3] = "true\x00false" }, err: "invalid argument"},
		{name: "a variable with a zero byte", change: func(s *Spec) { s.Env = []string{"A=b\x00c"} }, err: "invalid argument"},
		{name: "a variable with a newline", change: func(s *Spec) { s.Env = []string{"A=b\nPATH=/c"} }, script: "echo \"$A\"", out: "b\nPATH=/c\n"},
		{name: "a variable without a name", change: func(s *Spec) { s.Env = []string{"=x", "", "A=1"} }, script: "echo $A", out: "1\n"},
		{name: "a variable that is too long", change: func(s *Spec) { s.Env = []string{"A=" + strings.Repeat("x", 200<<10)} }, err: "argument list too long"},
		{name: "many variables", change: func(s *Spec) { s.Env = strings.Split(strings.Repeat("A="+strings.Repeat("x", 1000)+" ", 8000), " ") }, err: "argument list too long"},
		{name: "a host name that is too long", change: func(s *Spec) { s.Hostname = strings.Repeat("h", 65) }, err: "setting host name"},
		{name: "a user with a newline", change: func(s *Spec) { s.User = "x\nann:x:0:0" }, err: "not in the image's /etc"},
		{name: "a program's name with a newline", change: func(s *Spec) { s.Args = []string{"/bin/x\ny"} }, err: "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := shell(t, c.script)
			c.change(&s)
			out, err := output(t, n, s)
			if c.err == "" && (err != nil || out != c.out) {
				t.Errorf("got %q, %v; want %q", out, err, c.out)
			}
			var e *ExitError
			if c.err != "" && (err == nil || errors.As(err, &e) || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("got %v, want it to say %q", err, c.err)
			}
			if err != nil && len(err.Error()) > 4096 {
				t.Errorf("the error is %d bytes long", len(err.Error()))
			}
		})
	}
	checkNothingLeft(t)
}

// A layer whose folders are swapped for links of the host between steps does not
// exist; what a step leaves may be anything, and is not followed.
func TestUpperOfLinks(t *testing.T) {
	n := newNative(t)
	host := files(t, map[string]string{"canary": "safe"})
	s := shell(t, "rm -rf /etc; ln -s "+host+" /etc; ln -s "+host+" /mnt")
	s.Mounts = []Mount{{Dest: "/a/b/c", Tmpfs: &Tmpfs{}}}
	s.StubsRecursive = true
	if out, err := output(t, n, s); err != nil {
		t.Fatal(err, out)
	}
	if got := tree(t, host); got != "canary=safe" {
		t.Errorf("the host's folder holds %s", got)
	}
	if target, err := os.Readlink(filepath.Join(s.Root.Upper, "mnt")); err != nil || target != host {
		t.Errorf("the step's own link is %q, %v", target, err)
	}
}
