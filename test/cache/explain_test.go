package cache

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestExplainElsewhere has runners that start empty say why steps ran, by what the
// cache knows of the runner before. Who does not ask fetches nothing for it.
func TestExplainElsewhere(t *testing.T) {
	t.Parallel()
	r := registry(t)
	cache := "type=registry,ref=" + r.Addr + "/cache:main"
	flags := []string{"--cache-from", cache, "--cache-to", cache + ",mode=max"}
	dir := context(t, "one\n")
	newRunner(t).must(dir, flags...)
	edit := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	says := func(what, text string, patterns ...string) {
		t.Helper()
		for _, p := range patterns {
			if !regexp.MustCompile(p).MatchString(text) {
				t.Errorf("%s: nothing is like %s in\n%s", what, p, text)
			}
		}
	}
	compared := `compared with build \S+ of \S+ \S+, which ` + regexp.QuoteMeta(r.Addr) + `/cache:main knows of:`

	// What hits needs no explanation.
	_, before := requests(t, r, 0)
	newRunner(t).must(dir, "--cache-from", cache, "--explain")
	lines, before := requests(t, r, before)
	if n := blobsRead(lines, "cache"); n != 1 {
		t.Errorf("a build that hits fetched %d blobs, want the index only:\n%s", n, strings.Join(lines, "\n"))
	}

	edit("app.txt", "two\n")
	quiet := newRunner(t)
	quiet.must(dir, "--cache-from", cache)
	plain, before := requests(t, r, before)
	loud := newRunner(t)
	o := loud.must(dir, "--cache-from", cache, "--explain")
	asked, _ := requests(t, r, before)
	says("an edit", o.text, compared+`\n\s+files of context changed:\n\s+content\s+app\.txt\n`)
	if n, m := blobsRead(plain, "cache"), blobsRead(asked, "cache"); m != n+1 {
		t.Errorf("to explain, %d blobs were fetched, and %d without", m, n)
	}
	text, err := newRunner(t).command(dir, "--cache-from", cache, "--dry-run").Output()
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	says("before anything runs", string(text), `WOULD RUN .*COPY app\.txt`, `content\s+app\.txt`)

	last := func(r runner) string {
		t.Helper()
		text, err := exec.Command(shared.kiln, "explain", "--root", r.root, "last").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		return string(text)
	}
	says("who has asked", last(loud), `RAN .*COPY app\.txt`, `content\s+app\.txt`)
	says("who has not", last(quiet), "it was never seen here")

	// A guard that holds says why.
	guarded := newRunner(t)
	if o := guarded.build(dir, "--cache-from", cache, "--fail-on-miss", "*ran app*"); o.err == nil {
		t.Errorf("the guard did not hold:\n%s", o.text)
	}
	says("a guard", last(guarded), `content\s+app\.txt`)

	// A command.
	edit("Dockerfile", strings.Replace(dockerfile, "> /setup", "> /settled", 1))
	says("a command", newRunner(t).must(dir, "--cache-from", cache, "--explain").text, compared+`\n\s+it was .*> /setup there\n\s+the command changed: .*\[-/setup-\] \{\+/settled\+\}`)
}
