package executor

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func openRoot(t testing.TB, dir string) rootDir {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return rootDir(fd)
}

func TestLookUpUser(t *testing.T) {
	r := openRoot(t, files(t, map[string]string{
		"etc/passwd": "# people\n\nbroken\nann:x:1000:100:Ann:/home/ann:/bin/sh\nbad:x:-1:0::/:\nbig:x:4294967295:0::/:\n7:x:70:71::/seven:\nroot:x:0:0::/root:/bin/sh",
		"etc/group":  "users:x:100:\nops:x:20:ann,ann\ndup:x:20:ann\nfew:x\nwheel:x:10:root,ann",
	}))
	none := openRoot(t, t.TempDir())
	cases := []struct {
		name, spec string
		root       rootDir
		want       user
		err        string
	}{
		{"nothing is root", "", r, user{0, 0, []uint32{0, 10}, "/root"}, ""},
		{"a name", "ann", r, user{1000, 100, []uint32{100, 20, 10}, "/home/ann"}, ""},
		{"a number of the file", "1000", r, user{1000, 100, []uint32{100, 20, 10}, "/home/ann"}, ""},
		{"a number of nobody", "5", r, user{5, 0, []uint32{0}, "/"}, ""},
		{"a name made of digits", "7", r, user{70, 71, []uint32{71}, "/seven"}, ""},
		{"a group by name", "ann:wheel", r, user{1000, 10, []uint32{10}, "/home/ann"}, ""},
		{"a group by number", "5:6", r, user{5, 6, []uint32{6}, "/"}, ""},
		{"no files: root", "", none, user{0, 0, []uint32{0}, "/"}, ""},
		{"no files: root by name", "root:root", none, user{0, 0, []uint32{0}, "/"}, ""},
		{"no files: a name", "ann", none, user{}, `user "ann" is not`},
		{"an unknown group", "ann:x", r, user{}, `group "x" is not`},
		{"a negative number", "-5", r, user{}, `user "-5" is not`},
		{"a number that does not fit", "4294967295", r, user{}, `user "4294967295" is not`},
		{"a user whose number does not fit", "big", r, user{}, `user "big" is not`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := lookUpUser(c.root, c.spec)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, want %q", err, c.err)
				}
				return
			}
			if err != nil || got.uid != c.want.uid || got.gid != c.want.gid || got.home != c.want.home || !equal(got.groups, c.want.groups) {
				t.Errorf("got %+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

func equal(a, b []uint32) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// No content of a file makes the reader fail in another way than by an error.
func FuzzScanLines(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\n#c\n\n:::\n")
	f.Add("no end of line")
	f.Add("\x00\xff:\n\r\n")
	f.Fuzz(func(t *testing.T, content string) {
		err := scanLines(strings.NewReader(content), "x", func(fields []string) bool {
			if len(fields) == 0 || strings.Contains(strings.Join(fields, ""), "\n") {
				t.Errorf("fields %q", fields)
			}
			return true
		})
		if err != nil && len(content) <= maxUserFile {
			t.Error(err)
		}
	})
}

func TestResolve(t *testing.T) {
	r := openRoot(t, files(t, map[string]string{
		"a/b/f": "", "abs": "->/a/b", "rel": "->a/../a/b", "up": "->../../../a", "loop": "->loop", "gone": "->/x/y", "self": "->/",
	}))
	cases := []struct{ name, want string }{
		{"/a/b/f", "/a/b/f"},
		{"abs/f", "/a/b/f"},
		{"rel/new", "/a/b/new"},
		{"up/b", "/a/b"},
		{"../../../etc", "/etc"},
		{"gone/z", "/x/y/z"}, // links that lead nowhere yet
		{"self/self/a", "/a"},
		{"a/b/f/below", "/a/b/f/below"}, // a file is found out when it is opened
		{"", "/"},
	}
	for _, c := range cases {
		if got, err := r.resolve(c.name); err != nil || got != c.want {
			t.Errorf("%q: got %q, %v; want %q", c.name, got, err, c.want)
		}
	}
	if got, err := r.resolve("loop/x"); err == nil {
		t.Errorf("a loop: %q", got)
	}
}
