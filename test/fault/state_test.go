package fault

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// built makes a state folder in which a build has been, and gives its digest.
func built(t *testing.T, dir string) (state, digest string) {
	t.Helper()
	state = t.TempDir()
	digest, _ = build(t, state, dir)
	return state, digest
}

// TestDamagedState damages a state folder in every way that a disk, a user or
// another version can, and builds on it: it is repaired, or refused with a reason.
func TestDamagedState(t *testing.T) {
	dir := dockerfile(t, "FROM %[1]s/busybox AS a\nRUN seq 50000 > /numbers\nFROM %[1]s/busybox\nCOPY Dockerfile /Dockerfile\nCOPY --from=a /numbers /numbers\nRUN wc -l /numbers > /count\n", registry.Addr)
	truncate := func(size int64) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(t *testing.T, path string) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	garbage := func(t *testing.T, path string) {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.Repeat("?", int(min(st.Size(), 1<<20)))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name, below string
		damage      func(t *testing.T, path string)
	}{
		{"database files cut to nothing", "db", truncate(0)},
		{"database files cut short", "db", truncate(100)},
		{"database files full of garbage", "db", garbage},
		{"database files gone", "db", remove},
		{"blobs gone", "blobs", remove},
		{"blobs cut short", "blobs", truncate(30)},
		{"files of the pool gone", "files", remove},
		{"files of layers gone", "layers", remove},
		{"pieces of layers gone", "chunks", remove},
		{"pieces of layers full of garbage", "chunks", garbage},
		{"recipes full of garbage", "recipes", garbage},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			state, want := built(t, dir)
			err := filepath.WalkDir(filepath.Join(state, tt.below), func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					tt.damage(t, path)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if got, _ := build(t, state, dir); got != want {
					t.Errorf("the image is %s, want %s", got, want)
				}
			}
			clean(t, state)
		})
	}
}

// TestStateOfAnotherVersion does not touch the folder of a newer kiln.
func TestStateOfAnotherVersion(t *testing.T) {
	dir := dockerfile(t, "FROM scratch\nCOPY . /\n")
	state, want := built(t, dir)
	version := filepath.Join(state, "version")
	before, err := os.ReadFile(version)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(version, []byte("kiln state 99\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"build", dir}, {"du"}, {"prune", "--all", "--force"}} {
		run(t, state, nil, args...).failed(t, 1, state, "format 99", "newer kiln")
	}
	if err := os.WriteFile(version, before, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, _ := build(t, state, dir); got != want {
		t.Errorf("the image is %s, want %s", got, want)
	}
}

// TestStateWithoutPermission asks for a state folder that another user has.
func TestStateWithoutPermission(t *testing.T) {
	parent := t.TempDir()
	if err := os.Chmod(parent, 0o700); err != nil {
		t.Fatal(err)
	}
	// A binary and a context that the other user can reach.
	open, err := os.MkdirTemp("/tmp", "kiln-open-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(open) })
	program, err := os.ReadFile(kiln)
	if err != nil {
		t.Fatal(err)
	}
	for file, data := range map[string][]byte{"kiln": program, "Dockerfile": []byte("FROM scratch\nCOPY Dockerfile /\n")} {
		if err := os.WriteFile(filepath.Join(open, file), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(open, "kiln"), "build", "--root", filepath.Join(parent, "state"), open)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	finish(t, cmd).failed(t, 1, parent, "permission denied", "--root or KILN_ROOT")
}
