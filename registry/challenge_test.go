package registry

import (
	"maps"
	"net/url"
	"testing"
)

func TestPick(t *testing.T) {
	for _, test := range []struct {
		name    string
		headers []string
		scheme  string
		params  map[string]string
	}{
		{"nothing", nil, "", nil},
		{"a scheme that is not known", []string{`Negotiate`}, "", nil},
		{"a password", []string{`Basic realm="x"`}, "basic", map[string]string{"realm": "x"}},
		{"a token", []string{`Bearer realm="https://a/t",service="s",scope="repository:a:pull,push"`}, "bearer",
			map[string]string{"realm": "https://a/t", "service": "s", "scope": "repository:a:pull,push"}},
		{"in other letters, with blanks and without quotes", []string{`bEARER  Realm = x , service=y`}, "bearer", map[string]string{"realm": "x", "service": "y"}},
		{"the token is taken, wherever it stands", []string{`Basic realm="x"`, `Bearer realm="y"`}, "bearer", map[string]string{"realm": "y"}},
		{"quotes in quotes", []string{`Bearer realm="a\"b\\c"`}, "bearer", map[string]string{"realm": `a"b\c`}},
		{"a string that does not end", []string{`Bearer service="s",realm="x`}, "bearer", map[string]string{"service": "s"}},
		{"a name that is none", []string{`Bearer a b="c"`}, "bearer", map[string]string{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, ok := pick(test.headers)
			if ok != (test.scheme != "") || c.scheme != test.scheme || ok && !maps.Equal(c.params, test.params) {
				t.Errorf("got %q %v, want %q %v", c.scheme, c.params, test.scheme, test.params)
			}
		})
	}
}

func FuzzParseChallenge(f *testing.F) {
	for _, s := range []string{`Bearer realm="https://a/t",service="s"`, `Basic`, `Bearer a="\`, "Bearer =,=\"\"", `Bearer a="b"c=d`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		total := 0
		for k, v := range parseChallenge(s).params {
			if total += len(k) + len(v); k == "" {
				t.Errorf("%q: a parameter without a name", s)
			}
		}
		if total > len(s) {
			t.Errorf("%q: more was read than is there", s)
		}
	})
}

// TestRealms says from where a registry may have tokens fetched.
func TestRealms(t *testing.T) {
	for _, test := range []struct {
		registry, realm string
		ok              bool
	}{
		{"https://203.0.113.1/v2/", "https://203.0.113.2/token", true},
		{"https://10.0.0.1/v2/", "https://10.0.0.2/token", true}, // both inside of one network
		{"http://127.0.0.1:5000/v2/", "http://127.0.0.1:6000/token", true},
		{"http://127.0.0.1:5000/v2/", "http://127.0.0.2:6000/token", true},
		{"http://127.0.0.1:5000/v2/", "https://10.0.0.2/token", true},
		{"https://203.0.113.1/v2/", "https://10.0.0.2/token", false},
		{"https://203.0.113.1/v2/", "https://127.0.0.1/token", false},
		{"https://10.0.0.1/v2/", "https://[::ffff:127.0.0.1]/token", false},
		{"https://10.0.0.1/v2/", "https://169.254.169.254/token", false},
		{"http://127.0.0.1/v2/", "http://100.100.100.200/token", false},
		{"https://203.0.113.1/v2/", "https://100.64.0.1/token", false},
		{"https://203.0.113.1/v2/", "http://203.0.113.1/token", false}, // in the clear
		{"https://203.0.113.1/v2/", "ftp://203.0.113.1/token", false},
		{"https://203.0.113.1/v2/", "", false},
		{"https://203.0.113.1/v2/", "https:///token", false},
	} {
		from, err := url.Parse(test.registry)
		if err != nil {
			t.Fatal(err)
		}
		to, err := url.Parse(test.realm)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkRealm(t.Context(), from, to); (err == nil) != test.ok {
			t.Errorf("%s sends to %q: got %v, want it allowed: %v", test.registry, test.realm, err, test.ok)
		}
	}
}
