package userns

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/worker/executor"
)

// TestMain is also the program that runs in the namespace: a test starts this very
// executable as another user, with a script in the environment.
func TestMain(m *testing.M) {
	if script := os.Getenv("KILN_USERNS_SCRIPT"); script != "" {
		os.Exit(inside(script))
	}
	os.Exit(m.Run())
}

func inside(script string) int {
	done, code, err := Enter()
	if err != nil {
		fmt.Println("entering:", err)
		return 99
	}
	if done {
		return code
	}
	dir, err := os.MkdirTemp("", "kiln-userns-run-")
	if err != nil {
		fmt.Println(err)
		return 98
	}
	defer os.RemoveAll(dir)
	n, err := executor.New(executor.Options{Dir: filepath.Join(dir, "x")})
	if err != nil {
		fmt.Println("preparing:", err)
		return 97
	}
	defer n.Close()
	o := executor.Overlay{Lower: []string{os.Getenv("KILN_USERNS_ROOT")}, Upper: dir + "/upper", Work: dir + "/work"}
	for _, d := range []string{o.Upper, o.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			fmt.Println(err)
			return 96
		}
	}
	network := executor.NetworkNone
	if os.Getenv("KILN_USERNS_NETWORK") != "" {
		network = executor.NetworkDefault
	}
	err = n.Run(context.Background(), executor.Spec{
		ID: "x", Root: o, Args: []string{"/bin/busybox", "sh", "-c", script}, User: os.Getenv("KILN_USERNS_USER"),
		Network: network, Stdout: os.Stdout, Stderr: os.Stdout, Mounts: []executor.Mount{{Dest: "/t", Tmpfs: &executor.Tmpfs{}}},
	})
	if err != nil {
		fmt.Println("run:", err)
		return 5
	}
	entries, err := os.ReadDir(o.Upper)
	fmt.Println("upper:", entries, err)
	return 0
}

// A user of the machine that has no rights at all builds all the same, with and
// without subordinate ids.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a user, and needs root for it")
	}
	root := busybox(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(openDir(t), "test")
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, data, 0o755); err != nil {
		t.Fatal(err)
	}
	const name = "kilntest"
	exec.Command("userdel", name).Run() // of a test that was killed
	if out, err := exec.Command("useradd", "--no-create-home", "--shell", "/bin/sh", name).CombinedOutput(); err != nil {
		t.Fatalf("making a user: %v %s", err, out)
	}
	t.Cleanup(func() { exec.Command("userdel", name).Run() })

	// The layers of a user's builds belong to the user.
	if out, err := exec.Command("chown", "-Rh", name+":", root).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}

	run := func(user, script string, env ...string) (string, error) {
		cmd := exec.Command("setpriv", "--reuid", user, "--regid", groupOf(t, user), "--clear-groups", "--", bin)
		cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "KILN_USERNS_SCRIPT=" + script, "KILN_USERNS_ROOT=" + root}, env...)
		cmd.Dir = "/"
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	cases := []struct {
		name, user, script string
		env                []string
		want               string
	}{
		{"subordinate ids", name, "id; touch /new; chown 7:8 /new; stat -c '%u %g' /new", nil, "uid=0(root) gid=0(root) groups=0(root)\n7 8\nupper: [- new] <nil>"},
		{"another user", name, "id; echo x >/dev/null; ls -l /dev/null | cut -c1", []string{"KILN_USERNS_USER=ann"}, "uid=1000(ann) gid=1000(ann) groups=10(wheel),1000(ann)\nc\nupper: [] <nil>"},
		{"a network of its own", name, "ls /sys/class/net; ip -o addr | head -n1 | awk '{print $4}'", nil, "lo\n127.0.0.1/8\nupper: [] <nil>"},
		{"the host's network", name, "test -e /sys/class/net/lo && echo ok; touch /sys/x 2>&1", []string{"KILN_USERNS_NETWORK=1"}, "ok\ntouch: /sys/x: "},
		{"deleting", name, "rm /etc/group; rm -r /var; mkdir /var; ls /etc", nil, "hosts\npasswd\nresolv.conf\nupper: [d etc/ d var/] <nil>"},
		{"one id only", "nobody", "id -u; echo ok >/dev/null; grep Seccomp: /proc/self/status", nil, "0\nSeccomp:\t2\nupper: [] <nil>"},
		{"one id only, another user", "nobody", "id -u", []string{"KILN_USERNS_USER=ann"}, "run: the step runs as user 1000 and group 1000, and whoever builds has one id and no others: "},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := run(c.user, c.script, c.env...)
			if !strings.HasPrefix(got, c.want) {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

// groupOf gives the number of a user's own group.
func groupOf(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("id", "-g", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// openDir is a temporary folder that every user may enter, which t.TempDir's parents do not let them.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kiln-userns-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func busybox(t *testing.T) string {
	t.Helper()
	dir := openDir(t)
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("the tests need the Debian package busybox-static: ", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"bin", "etc", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{
		"bin/busybox": string(data),
		"etc/passwd":  "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n",
		"etc/group":   "root:x:0:\nann:x:1000:\nwheel:x:10:ann\n",
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(path, "--install", "-s", filepath.Join(dir, "bin")).CombinedOutput(); err != nil {
		t.Fatalf("installing busybox: %v %s", err, out)
	}
	return dir
}
