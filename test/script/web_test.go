package script

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdWeb serves the files of a folder, and misbehaves at some paths.
func cmdWeb(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "web NAME DIR")
	files := http.FileServerFS(os.DirFS(ts.MkAbs(args[1])))
	token := ts.Getenv("WEB_TOKEN")
	mux := http.NewServeMux()
	mux.Handle("/", files)
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/loop", http.StatusFound)
	})
	mux.HandleFunc("/half", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(1<<20))
		fmt.Fprint(w, "the beginning")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler) // closes the connection
	})
	mux.HandleFunc("/broken", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "out of order", http.StatusInternalServerError)
	})
	mux.HandleFunc("/private/", func(w http.ResponseWriter, r *http.Request) {
		if token == "" || r.Header.Get("Authorization") != "Bearer "+token {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		http.StripPrefix("/private", files).ServeHTTP(w, r)
	})
	repos, err := gitBackend(ts.MkAbs(args[1]))
	ts.Check(err)
	mux.Handle("/git/", http.StripPrefix("/git", repos))
	mux.HandleFunc("/etag/", tagged(ts.MkAbs(args[1])))
	log, err := os.OpenFile(ts.MkAbs("."+args[0]+".requests"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	ts.Check(err)
	ts.Defer(func() { log.Close() })
	srv := httptest.NewServer(logged(mux, log))
	ts.Defer(srv.Close)
	ts.Setenv(args[0], srv.Listener.Addr().String())
}

// gitBackend serves the repositories of a folder, as git itself does.
func gitBackend(dir string) (http.Handler, error) {
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return nil, fmt.Errorf("git --exec-path: %w", err)
	}
	return &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}, nil
}

// tagged serves files with an ETag that is made of what they hold, and without a time.
func tagged(dir string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		data, err := fs.ReadFile(os.DirFS(dir), strings.TrimPrefix(r.URL.Path, "/etag/"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(data)))
		http.ServeContent(w, r, r.URL.Path, time.Time{}, bytes.NewReader(data))
	}
}

// logged writes a line for each request: method and path, the header by which the
// client asks only for what is new, and the status of the answer.
func logged(h http.Handler, log io.Writer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		line := r.Method + " " + r.URL.Path
		for _, name := range []string{"If-None-Match", "If-Modified-Since"} {
			if r.Header.Get(name) != "" {
				line += " " + name
			}
		}
		answer := &status{ResponseWriter: w, code: http.StatusOK}
		defer func() { fmt.Fprintln(log, line, answer.code) }()
		h.ServeHTTP(answer, r)
	})
}

// status remembers the status of an answer.
type status struct {
	http.ResponseWriter
	code int
}

// WriteHeader notes the code.
func (s *status) WriteHeader(code int) {
	s.code = code
	s.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (s *status) Unwrap() http.ResponseWriter { return s.ResponseWriter }
