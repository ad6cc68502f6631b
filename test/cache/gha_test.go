package cache

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
)

// actions is GitHub's cache service and the storage behind it, as their protocol
// has them: entries are made once, are seen when they are finished, and belong to
// a branch; addresses are signed.
type actions struct {
	*httptest.Server
	t *testing.T

	mu      sync.Mutex
	entries []*actionsEntry // newest last
	blocks  map[string][]byte
}

type actionsEntry struct {
	scope, key, version string
	data                []byte
	stored, done        bool
}

// actionsToken is what a job of a branch has: it writes its own, and reads main's.
func actionsToken(branch string) string {
	scopes := []map[string]any{{"Scope": "refs/heads/" + branch, "Permission": 3}}
	if branch != "main" {
		scopes = append(scopes, map[string]any{"Scope": "refs/heads/main", "Permission": 1})
	}
	ac, err := json.Marshal(scopes)
	if err != nil {
		panic(err)
	}
	claims, err := json.Marshal(map[string]string{"ac": string(ac)})
	if err != nil {
		panic(err)
	}
	return "h." + base64.RawURLEncoding.EncodeToString(claims) + ".s"
}

func startActions(t *testing.T) *actions {
	a := &actions{t: t, blocks: map[string][]byte{}}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

func (a *actions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	method, ok := strings.CutPrefix(r.URL.Path, "/twirp/github.actions.results.api.v1.CacheService/")
	if !ok {
		a.storage(w, r)
		return
	}
	var scopes []string
	for _, branch := range []string{"main", "feature"} {
		if r.Header.Get("Authorization") == "Bearer "+actionsToken(branch) {
			scopes = slices.Compact([]string{"refs/heads/" + branch, "refs/heads/main"})
		}
	}
	var in struct {
		Key         string   `json:"key"`
		Version     string   `json:"version"`
		RestoreKeys []string `json:"restore_keys"`
		Size        int64    `json:"size_bytes"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Method != http.MethodPost || scopes == nil ||
		in.Key == "" || len(in.Key) > 512 || len(in.Version) != 64 || r.Header.Get("Content-Type") != "application/json" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	answer := map[string]any{"ok": false}
	switch method {
	case "CreateCacheEntry":
		if a.entry(scopes[0], in.Key, in.Version) >= 0 {
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, `{"code":"already_exists","msg":"cache entry with the same key, version, and scope already exists"}`)
			return
		}
		a.entries = append(a.entries, &actionsEntry{scope: scopes[0], key: in.Key, version: in.Version})
		answer = map[string]any{"ok": true, "signed_upload_url": a.sign(r.Host, len(a.entries)-1)}
	case "FinalizeCacheEntryUpload":
		n := a.entry(scopes[0], in.Key, in.Version)
		if n >= 0 && a.entries[n].stored && int64(len(a.entries[n].data)) == in.Size {
			a.entries[n].done = true
			answer = map[string]any{"ok": true, "entry_id": fmt.Sprint(n)}
		}
	case "GetCacheEntryDownloadURL":
		if n := a.lookUp(scopes, in.Key, in.Version, in.RestoreKeys); n >= 0 {
			answer = map[string]any{"ok": true, "signed_download_url": a.sign(r.Host, n), "matched_key": a.entries[n].key}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

func (a *actions) entry(scope, key, version string) int {
	return slices.IndexFunc(a.entries, func(e *actionsEntry) bool { return e.scope == scope && e.key == key && e.version == version })
}

// lookUp looks through the scopes in turn: for the key, then for what begins with
// one of the others, newest first.
func (a *actions) lookUp(scopes []string, key, version string, prefixes []string) int {
	for _, scope := range scopes {
		if n := a.entry(scope, key, version); n >= 0 && a.entries[n].done {
			return n
		}
		for _, p := range prefixes {
			for n, e := range slices.Backward(a.entries) {
				if e.done && e.scope == scope && e.version == version && strings.HasPrefix(e.key, p) {
					return n
				}
			}
		}
	}
	return -1
}

// sign gives the address of an entry, at the name by which the service was reached.
func (a *actions) sign(host string, n int) string {
	return fmt.Sprintf("http://%s/store/%d?sig=%x", host, n, sha256.Sum256(fmt.Appendf(nil, "sig %d", n)))
}

// storage is Azure's: a blob in one request, or in blocks that are then listed.
func (a *actions) storage(w http.ResponseWriter, r *http.Request) {
	var n int
	_, err := fmt.Sscanf(r.URL.Path, "/store/%d", &n)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil || n < 0 || n >= len(a.entries) || !strings.HasSuffix(a.sign(r.Host, n), "sig="+r.URL.Query().Get("sig")) || r.Header.Get("Authorization") != "" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	e := a.entries[n]
	if r.Method == http.MethodGet {
		http.ServeContent(w, r, "", noTime, strings.NewReader(string(e.data)))
		return
	}
	data, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodPut || r.Header.Get("x-ms-version") == "" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	switch comp := r.URL.Query().Get("comp"); {
	case comp == "block":
		a.blocks[fmt.Sprint(n, r.URL.Query().Get("blockid"))] = data
	case comp == "blocklist":
		var list struct{ Latest []string }
		if err := xml.Unmarshal(data, &list); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		for _, id := range list.Latest {
			e.data = append(e.data, a.blocks[fmt.Sprint(n, id)]...)
		}
		e.stored = true
	case r.Header.Get("x-ms-blob-type") == "BlockBlob":
		e.data, e.stored = data, true
	default:
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusCreated)
}

// TestActions has a job of a branch read what one of main wrote, and add to it
// without main's seeing that.
func TestActions(t *testing.T) {
	t.Parallel()
	a := startActions(t)
	dir, changed := context(t, "one\n"), context(t, "two\n")
	flag := func(branch string) string { return "type=gha,url_v2=" + a.URL + "/,token=" + actionsToken(branch) }
	newRunner(t).must(dir, "--cache-to", flag("main")+",mode=max")
	branch := newRunner(t).must(changed, append(tarball(t), "--cache-from", flag("feature"), "--cache-to", flag("feature")+",mode=max")...)
	branch.check(t, []string{"app"}, wanted(t, changed))
	newRunner(t).must(changed, append(tarball(t), "--cache-from", flag("feature"))...).check(t, nil, wanted(t, changed))
	newRunner(t).must(dir, append(tarball(t), "--cache-from", flag("feature"))...).check(t, nil, wanted(t, dir))
	newRunner(t).must(changed, append(tarball(t), "--cache-from", flag("main"))...).check(t, []string{"app"}, wanted(t, changed))
	// In a job the address and the token are in the environment.
	t.Run("environment", func(t *testing.T) {
		r := newRunner(t)
		r.env = []string{"ACTIONS_RESULTS_URL=" + a.URL + "/", "ACTIONS_RUNTIME_TOKEN=" + actionsToken("main")}
		r.must(dir, append(tarball(t), "--cache-from", "type=gha")...).check(t, nil, wanted(t, dir))
	})
}
