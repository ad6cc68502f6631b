//go:build parity

package parity

import (
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// site is a web server on a loopback address: /web/ has the cases' files, /git/
// their git repositories, and /fault/ answers as broken servers do.
type site struct {
	url, dir string
	goroot   string // of the toolchain that runs the tests
	server   *httptest.Server
}

func startSite(dir string) (*site, error) {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("looking for Go: %w", err)
	}
	core, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return nil, fmt.Errorf("looking for git: %w", err)
	}
	git := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(core)), "git-http-backend"),
		Root: "/git",
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + dir},
		// Some cases ask for what is not there; git's words about it are no news.
		Stderr: io.Discard,
	}
	mux := http.NewServeMux()
	mux.Handle("/web/", http.StripPrefix("/web/", http.FileServer(http.Dir(dir))))
	mux.Handle("/git/", git)
	mux.HandleFunc("/fault/loop", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/fault/loop", http.StatusFound)
	})
	mux.HandleFunc("/fault/half", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.Write([]byte("half of it"))
	})
	mux.HandleFunc("/fault/500", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "broken", http.StatusInternalServerError)
	})
	mux.HandleFunc("/fault/named", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Disposition", `attachment; filename="named.txt"`)
		w.Write([]byte("named by its header\n"))
	})
	mux.HandleFunc("/fault/moved", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/fault/named", http.StatusMovedPermanently)
	})
	mux.HandleFunc("/fault/token/", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer parity" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		w.Write([]byte("let in\n"))
	})
	server := httptest.NewServer(mux)
	return &site{url: server.URL, dir: dir, goroot: strings.TrimSpace(string(goroot)), server: server}, nil
}

// runPrepare runs the case's script in the context's folder, in a time zone and
// with git settings that are the same everywhere.
func (c *testCase) runPrepare(f *folders) error {
	if c.prepare == "" {
		return nil
	}
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", string(f.expand([]byte(c.prepare))))
	cmd.Dir = f.context
	cmd.Env = append(os.Environ(), "WEB="+f.web, "DIR="+f.dirs, "TZ=UTC", "HOME="+f.dirs,
		"GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com",
		"GIT_AUTHOR_DATE=2024-01-02T03:04:05Z", "GIT_COMMITTER_DATE=2024-01-02T03:04:05Z",
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=init.defaultBranch", "GIT_CONFIG_VALUE_0=main")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("@prepare: %w\n%s", err, out)
	}
	return nil
}
