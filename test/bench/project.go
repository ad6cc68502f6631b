package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// W13: a Go service with modules and a cache mount, of which one line is edited.

const serviceMain = `// Command service stores what is posted to it, compressed.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"

	"github.com/dgraph-io/badger/v4"
	"github.com/klauspost/compress/zstd"
)

// edit %d
func main() {
	db, err := badger.Open(badger.DefaultOptions("/data"))
	if err != nil {
		log.Fatal(err)
	}
	w, _ := zstd.NewWriter(nil)
	http.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		err := db.Update(func(txn *badger.Txn) error { return txn.Set([]byte(r.URL.Path), w.EncodeAll(data, nil)) })
		fmt.Fprintln(rw, err, %d)
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
}
`

const serviceDockerfile = `FROM %s AS build
WORKDIR /src
COPY . .
ENV GOFLAGS=-mod=vendor GOTOOLCHAIN=local CGO_ENABLED=0 GOCACHE=/cache
RUN --mount=type=cache,target=/cache --mount=type=bind,from=goroot,target=/usr/local/go /usr/local/go/bin/go build -trimpath -o /service .
FROM scratch
COPY --from=build /service /service
`

func service(l *lab) string { return filepath.Join(l.dir, "src", "service") }

// projectSetup makes the module, with the versions that this one has, and vendors
// what it needs.
func projectSetup(l *lab) error {
	if err := writeService(l, 0); err != nil {
		return err
	}
	own := strings.TrimSpace(output("go", "env", "GOMOD"))
	mod, err := os.ReadFile(own)
	if err != nil {
		return err
	}
	sum, err := os.ReadFile(filepath.Join(filepath.Dir(own), "go.sum"))
	if err != nil {
		return err
	}
	_, requires, _ := strings.Cut(string(mod), "\n")
	for name, data := range map[string]string{"go.mod": "module example.com/service\n" + requires, "go.sum": string(sum)} {
		if err := os.WriteFile(filepath.Join(service(l), name), []byte(data), 0o644); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(l.ctx, "go", "mod", "vendor")
	cmd.Dir = service(l)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go mod vendor: %w\n%s", err, out)
	}
	return nil
}

func writeService(l *lab, edit int) error {
	if err := os.MkdirAll(service(l), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(service(l), "main.go"), fmt.Appendf(nil, serviceMain, edit, edit), 0o644)
}

func projectRound(r *run) error {
	file, err := r.write("service-build/Dockerfile", fmt.Sprintf(serviceDockerfile, r.debian))
	if err != nil {
		return err
	}
	b := build{context: service(r.lab), dockerfile: file, contexts: map[string]string{"goroot": strings.TrimSpace(output("go", "env", "GOROOT"))}}
	if err := writeService(r.lab, 2*r.n); err != nil {
		return err
	}
	if err := r.untimed(b); err != nil {
		return err
	}
	if err := writeService(r.lab, 2*r.n+1); err != nil {
		return err
	}
	if err := r.time("W13", b); err != nil || r.n > 0 {
		return err
	}
	b.oci = r.out("service")
	r.image("W13", b.oci)
	return r.untimed(b)
}

// projectPlain compiles the same edit with a warm cache of the compiler's.
func projectPlain(l *lab) (map[string][]part, error) {
	cache := filepath.Join(l.dir, "src", "gocache")
	var seconds float64
	for edit := range 2 {
		l.edits++
		if err := writeService(l, 1000+l.edits+edit); err != nil {
			return nil, err
		}
		settle()
		var err error
		seconds, err = duration(func() error {
			cmd := exec.CommandContext(l.ctx, "go", "build", "-trimpath", "-o", filepath.Join(l.dir, "out", "service"), ".")
			cmd.Dir = service(l)
			cmd.Env = append(os.Environ(), "GOFLAGS=-mod=vendor", "CGO_ENABLED=0", "GOCACHE="+cache)
			return cmd.Run()
		})
		if err != nil {
			return nil, err
		}
	}
	return map[string][]part{"W13": {{"the compiler alone", seconds}}}, nil
}
