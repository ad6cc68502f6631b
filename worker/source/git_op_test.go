package source

import "testing"

// TestSameRepository compares identifiers with the addresses that clients send with them.
func TestSameRepository(t *testing.T) {
	for _, test := range []struct {
		id, remote string
		want       bool
	}{
		{"github.com/a/b", "https://github.com/a/b.git", true},
		{"github.com/a/b.git", "https://github.com/a/b", true},
		{"GitHub.com/a/b", "https://github.com/a/b", true},
		{"github.com/a/b", "git@github.com:a/b.git", true},
		{"github.com/a/b.git", "ssh://git@github.com/a/b.git", true},
		{"github.com/a/b.git", "https://me:token@github.com/a/b.git", true},
		{"host:2222/a", "ssh://git@host:2222/a", true},
		{"host/a/b", "https://host/a/../a/b", true},
		{"git@github.com:a/b.git", "git@github.com:a/b.git", true},
		{"github.com/a/b", "https://github.com/a/c", false},
		{"github.com/a/b", "https://other.example/a/b", false},
		{"host:2222/a", "ssh://git@host/a", false},
		{"github.com/A/b", "https://github.com/a/b", false},
		{"github.com/a/b", "https://github.com/a/b/../c", false},
	} {
		if got := sameRepository(withTransport(test.id), withTransport(test.remote)); got != test.want {
			t.Errorf("%s, %s: got %v, want %v", test.id, test.remote, got, test.want)
		}
	}
}
