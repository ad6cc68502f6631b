package script

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/kiln-build/kiln/test/internal/peer"
)

// addUser makes a user of this machine for the time of the test.
func addUser(t *testing.T, name string, args ...string) *syscall.Credential {
	t.Helper()
	if out, err := exec.Command("useradd", append(args, "--no-create-home", name)...).CombinedOutput(); err != nil {
		t.Fatalf("useradd: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("userdel", name).CombinedOutput(); err != nil {
			t.Errorf("userdel: %v\n%s", err, out)
		}
	})
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// TestRootless builds as users of the machine: one with subordinate ids, and one
// who has his own id alone, and so builds what needs no other.
func TestRootless(t *testing.T) {
	for _, tt := range []struct {
		name       string
		flags      []string // of useradd
		dockerfile string
		want       []string // of the image's files
	}{
		{"kilnwith", nil, "RUN id -u > /uid && chown 1000:1000 /uid && touch /of-root\nCOPY --chown=alice:alice Dockerfile /copied\nRUN chmod 777 /home\nUSER alice\nRUN id -un > /home/who\n",
			[]string{"/uid 0 0644 1000:1000 2", "/copied 0 0600 1000:1000", "/of-root 0 0644 0:0 0"}},
		{"kilnwithout", []string{"--system"}, "RUN id -u > /uid && touch /of-root\nCOPY Dockerfile /copied\n",
			[]string{"/uid 0 0644 0:0 2", "/copied 0 0600 0:0", "/of-root 0 0644 0:0 0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := fmt.Sprintf("%s%d", tt.name, os.Getpid()%100000)
			credential := addUser(t, name, tt.flags...)
			home, err := os.MkdirTemp("/tmp", "kiln-rootless-") // below no folder of root's alone
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(home) })
			copyFile(t, filepath.Join(shared.bin, "kiln"), filepath.Join(home, "kiln"))
			write(t, filepath.Join(home, "context", "Dockerfile"), "FROM "+shared.registry.Addr+"/busybox\n"+tt.dockerfile)
			err = filepath.WalkDir(home, func(path string, _ os.DirEntry, err error) error {
				if err == nil {
					err = os.Chown(path, int(credential.Uid), int(credential.Gid))
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			command := func(args ...string) string {
				cmd := exec.Command(filepath.Join(home, "kiln"), args...)
				cmd.Dir = home
				cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential, Pdeathsig: syscall.SIGKILL}
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("kiln %v: %v\n%s", args, err, out)
				}
				return string(out)
			}
			command("build", "--progress", "plain", "-o", "type=oci,dest=out.tar", "context")
			if out := command("build", "--progress", "plain", "context"); !strings.Contains(out, "CACHED") {
				t.Errorf("the second build has nothing cached:\n%s", out)
			}
			got := listFiles(t, filepath.Join(home, "out.tar"))
			for _, w := range tt.want {
				if !strings.Contains(got, w) {
					t.Errorf("the image has no %q", w)
				}
			}
			if t.Failed() {
				t.Log(got)
			}
			if st, err := os.Stat(filepath.Join(home, ".local/state/kiln/version")); err != nil {
				t.Errorf("the state is not in the user's own folder: %v", err)
			} else if got := st.Sys().(*syscall.Stat_t).Uid; got != credential.Uid {
				t.Errorf("the state belongs to %d, want %d", got, credential.Uid)
			}
			command("prune", "--all", "--force")
		})
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// listFiles lists the files of an image, as the scripts' command does.
func listFiles(t *testing.T, tarball string) string {
	t.Helper()
	img, err := peer.Open(tarball, shared.bin)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := peer.Files(img)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}
