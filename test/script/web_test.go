package script

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"

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
	srv := httptest.NewServer(mux)
	ts.Defer(srv.Close)
	ts.Setenv(args[0], srv.Listener.Addr().String())
}
