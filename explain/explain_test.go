package explain

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*", "[1/2] RUN a", true},
		{"", "", true},
		{"", "a", false},
		{"[build ?/7] RUN make", "[build 3/7] RUN make", true},   // brackets stand for themselves
		{"[build ?/7] RUN make", "[build 13/7] RUN make", false}, // ? is one character
		{"*apt-get*", "[2/3] RUN apt-get update", true},
		{"apt-get*", "[2/3] RUN apt-get update", false}, // the whole name
		{"*a*b*c", "xaybzbc", true},                     // the last star but one is tried again
		{"*a*b*c", "xaybzbd", false},
		{"?", "ü", true}, // characters, not bytes
		{"**", "x", true},
	} {
		if got := Matches(c.pattern, c.name); got != c.want {
			t.Errorf("Matches(%q, %q) = %v, want %v", c.pattern, c.name, got, c.want)
		}
	}
}

// FuzzMatches compares Matches with a regular expression.
func FuzzMatches(f *testing.F) {
	f.Add("*a?b*", "xxaybzz")
	f.Add("[*]", "[1/2]")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if len(pattern) > 40 || len(name) > 200 {
			return
		}
		quoted := regexp.QuoteMeta(strings.ToValidUTF8(pattern, "\uFFFD"))
		re := regexp.MustCompile(`\A(?s:` + strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(quoted) + `)\z`)
		pattern, name = strings.ToValidUTF8(pattern, "\uFFFD"), strings.ToValidUTF8(name, "\uFFFD")
		if got, want := Matches(pattern, name), re.MatchString(name); got != want {
			t.Errorf("Matches(%q, %q) = %v, want %v", pattern, name, got, want)
		}
	})
}

func TestPlaceOf(t *testing.T) {
	for name, want := range map[string]Place{
		"[build 3/7] RUN make":       {Stage: "build", Number: "3", Of: "7", Rest: "RUN make"},
		"[3/7] RUN make":             {Number: "3", Of: "7", Rest: "RUN make"},
		"[linux/arm64 b 1/2] COPY .": {Stage: "linux/arm64 b", Number: "1", Of: "2", Rest: "COPY ."},
		"[internal] load context":    {Stage: "internal", Rest: "load context"},
		"mkdir /a":                   {Rest: "mkdir /a"},
		"[a/b] RUN make":             {Stage: "a/b", Rest: "RUN make"}, // no numbers
	} {
		if got := PlaceOf(name); got != want {
			t.Errorf("PlaceOf(%q) = %+v, want %+v", name, got, want)
		}
	}
}

func explanation() *Explanation {
	at := time.Unix(1e9, 0)
	return &Explanation{
		Build: BuildInfo{ID: "abcdefghijklmnop", Project: "/src", Started: at, Status: Done, Cached: 1, Ran: 2},
		Steps: []StepExplanation{
			{Name: "[1/4] FROM busybox", Vertex: "sha256:0000", Kind: "source", Outcome: "ran", Pin: "sha256:1234"},
			{Name: "[2/4] RUN a", Vertex: "sha256:abcd00", Kind: "exec", Outcome: "cached", Cached: true, Cache: "local", By: "content", Key: "0123456789abcdef"},
			{Name: "[3/4] RUN b c", Vertex: "sha256:abce00", Kind: "exec", Outcome: "ran", Seconds: 1.25, Miss: &Miss{
				Nearest: &Nearest{Build: "qrstuvwxyzabcdef", Started: at, Step: "[3/4] RUN b d"},
				Reasons: []Reason{
					{Kind: Command, Words: []Word{{"same", "b"}, {"gone", "d"}, {"new", "c"}}},
					{Kind: Setting, Name: "user", New: "nobody"},
					{Kind: Files, Name: "context", Files: []File{{"x", []string{"mode", "owner"}}}, More: 3},
				},
			}},
			{Name: "[other 4/4] RUN e", Vertex: "sha256:ffff00", Kind: "exec", Outcome: "ran", Miss: &Miss{
				Reasons: []Reason{{Kind: NeverSeen}, {Kind: Input, Step: "[3/4] RUN b c"}},
			}},
		},
	}
}

func TestText(t *testing.T) {
	var b bytes.Buffer
	if err := explanation().Text(&b); err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1e9, 0).Local().Format(time.DateTime)
	want := strings.ReplaceAll(`Build abcdefghij of /src, AT: 1 cached, 2 ran
CACHED    [2/4] RUN a
          local cache, by its content key 0123456789ab
RAN       [3/4] RUN b c (1.2s)
          compared with build qrstuvwxyz of AT:
            it was [3/4] RUN b d there
            the command changed: b [-d-] {+c+}
            the user changed: nobody, and was none
            files of context changed:
              mode,owner x
              and 3 more
RAN       [other 4/4] RUN e
            it was never seen here
            it reads [3/4] RUN b c, which is different now
`, "AT", at)
	if got := b.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestTextOfAnotherMachine prints what somebody else calls a step and a file.
func TestTextOfAnotherMachine(t *testing.T) {
	x := &Explanation{Steps: []StepExplanation{{
		Name: "[1/1] RUN a\n::error::b", Kind: "exec", Outcome: "ran",
		Miss: &Miss{Reasons: []Reason{{Kind: Files, Name: "context", Files: []File{{Path: "\x1b[2Jf", Changes: []string{"new"}}}}}},
	}}}
	var b bytes.Buffer
	if err := x.Text(&b); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); strings.ContainsRune(got, '\x1b') || strings.Contains(got, "\n::error") || !strings.Contains(got, "RUN a ::error::b") {
		t.Errorf("got %q", got)
	}
}

func TestSelect(t *testing.T) {
	for step, want := range map[string]string{
		"3/4":               "[3/4] RUN b c", // of the stage without a name, and no other
		"[3/4]":             "[3/4] RUN b c",
		"other 4/4":         "[other 4/4] RUN e",
		"[2/4] RUN a":       "[2/4] RUN a",
		"RUN b":             "[3/4] RUN b c",
		"sha256:abce":       "[3/4] RUN b c",
		"abcd00":            "[2/4] RUN a",
		"[2/4":              "[2/4] RUN a", // the beginning of a name
		"1/4":               "[1/4] FROM busybox",
		"nothing like that": "",
		"":                  "",
	} {
		x := explanation()
		err := x.Select(step)
		switch {
		case want == "" && !errors.Is(err, ErrNotFound):
			t.Errorf("%q: got %v, want ErrNotFound", step, err)
		case want != "" && (err != nil || len(x.Steps) != 1 || x.Steps[0].Name != want):
			t.Errorf("%q: got %+v, %v, want %s", step, x.Steps, err, want)
		}
	}
}

func TestIsMissed(t *testing.T) {
	err := &MissedError{Step: "[1/2] RUN a", Pattern: "*"}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errors.New("no"), false},
		{err, true},
		{fmt.Errorf("building: %w", err), true},
		{errors.New("failed to solve: " + err.Error()), true}, // of a daemon only the text is left
	} {
		if got := IsMissed(c.err); got != c.want {
			t.Errorf("IsMissed(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}
