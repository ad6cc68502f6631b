package cache

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// azureKey is the key of the account "acct" that startAzure knows.
const azureKey = "aGlkZGVuIGhpZGRlbiBoaWRkZW4gaGlkZGVuIGhpZGRlbg=="

// azure is Azure's blob storage, as far as caches use it: it checks signatures,
// wants containers made, and holds writers to their conditions.
type azure struct {
	*httptest.Server

	mu         sync.Mutex
	containers map[string]bool
	blobs      map[string][]byte
	blocks     map[string][]byte
	versions   map[string]int // how often each was written
}

func startAzure(t *testing.T) *azure {
	a := &azure{containers: map[string]bool{}, blobs: map[string][]byte{}, blocks: map[string][]byte{}, versions: map[string]int{}}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

// azureRef is a cache of a name in a container, reached at an address.
func azureRef(addr, container, name string) string {
	return "type=azblob,account_url=http://" + addr + "/acct,account_name=acct,container=" + container + ",secret_access_key=" + azureKey + ",name=" + name + ",prefix=" + name
}

// signed reports whether a request has the signature that its bytes want. The
// requests of caches have one parameter at most besides that of blocks.
func (a *azure) signed(r *http.Request) bool {
	at, err := time.Parse(http.TimeFormat, r.Header.Get("x-ms-date"))
	if err != nil || time.Since(at).Abs() > 15*time.Minute {
		return false
	}
	length := ""
	if r.ContentLength > 0 {
		length = fmt.Sprint(r.ContentLength)
	}
	text := r.Method + "\n\n\n" + length + "\n\n" + r.Header.Get("Content-Type") + "\n\n\n" +
		r.Header.Get("If-Match") + "\n" + r.Header.Get("If-None-Match") + "\n\n" + r.Header.Get("Range") + "\n"
	for _, name := range []string{"x-ms-blob-type", "x-ms-date", "x-ms-version"} {
		if v := r.Header.Get(name); v != "" {
			text += name + ":" + v + "\n"
		}
	}
	text += "/acct" + r.URL.EscapedPath()
	for _, name := range []string{"blockid", "comp", "restype"} {
		if v := r.URL.Query().Get(name); v != "" {
			text += "\n" + name + ":" + v
		}
	}
	key, err := base64.StdEncoding.DecodeString(azureKey)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return err == nil && r.Header.Get("Authorization") == "SharedKey acct:"+base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

func (a *azure) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, code string) {
		w.Header().Set("x-ms-error-code", code)
		w.WriteHeader(status)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || !a.signed(r) {
		refuse(http.StatusForbidden, "AuthenticationFailed")
		return
	}
	container, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/acct/"), "/")
	query := r.URL.Query()
	a.mu.Lock()
	defer a.mu.Unlock()
	if query.Get("restype") == "container" {
		if a.containers[container] {
			refuse(http.StatusConflict, "ContainerAlreadyExists")
			return
		}
		a.containers[container] = true
		w.WriteHeader(http.StatusCreated)
		return
	}
	if !a.containers[container] {
		refuse(http.StatusNotFound, "ContainerNotFound")
		return
	}
	key = container + "/" + key
	data, there := a.blobs[key]
	tag := fmt.Sprintf(`"0x%d"`, a.versions[key])
	if r.Method == http.MethodPut {
		switch match := r.Header.Get("If-Match"); {
		case r.Header.Get("If-None-Match") == "*" && there:
			refuse(http.StatusConflict, "BlobAlreadyExists")
		case match != "" && (!there || match != tag):
			refuse(http.StatusPreconditionFailed, "ConditionNotMet")
		default:
			a.write(w, r.Header, query, key, body, refuse)
		}
		return
	}
	if !there {
		refuse(http.StatusNotFound, "BlobNotFound")
		return
	}
	w.Header().Set("ETag", tag)
	http.ServeContent(w, r, "", noTime, strings.NewReader(string(data)))
}

// write takes a blob, a block, or a list of blocks.
func (a *azure) write(w http.ResponseWriter, header http.Header, query url.Values, key string, body []byte, refuse func(int, string)) {
	switch query.Get("comp") {
	case "block":
		a.blocks[key+query.Get("blockid")] = body
	case "blocklist":
		var list struct{ Latest []string }
		if err := xml.Unmarshal(body, &list); err != nil {
			refuse(http.StatusBadRequest, "InvalidXmlDocument")
			return
		}
		var data []byte
		for _, id := range list.Latest {
			data = append(data, a.blocks[key+id]...)
		}
		a.blobs[key] = data
		a.versions[key]++
	default:
		if header.Get("x-ms-blob-type") != "BlockBlob" {
			refuse(http.StatusBadRequest, "MissingRequiredHeader")
			return
		}
		a.blobs[key] = body
		a.versions[key]++
	}
	w.WriteHeader(http.StatusCreated)
}

// TestAzure has builds share a container that the first one makes: two write the
// same cache, a third has it all; with another key there is a warning and no cache.
func TestAzure(t *testing.T) {
	t.Parallel()
	a := startAzure(t)
	dir, changed := context(t, "one\n"), context(t, "two\n")
	ref := azureRef(a.Listener.Addr().String(), "ci", "app")
	newRunner(t).must(dir, "--cache-to", ref+",mode=max")
	newRunner(t).must(changed, append(tarball(t), "--cache-from", ref, "--cache-to", ref+",mode=max")...).check(t, []string{"app"}, wanted(t, changed))
	newRunner(t).must(dir, append(tarball(t), "--cache-from", ref)...).check(t, nil, wanted(t, dir))
	newRunner(t).must(changed, append(tarball(t), "--cache-from", ref)...).check(t, nil, wanted(t, changed))
	wrong := strings.Replace(ref, azureKey, "d3Jvbmc=", 1)
	o := newRunner(t).must(dir, append(tarball(t), "--cache-from", wrong)...)
	if o.check(t, all, wanted(t, dir)); !strings.Contains(o.text, "AuthenticationFailed") || strings.Contains(o.text, "d3Jvbmc") {
		t.Errorf("with a wrong key:\n%s", o.text)
	}
	t.Run("environment", func(t *testing.T) {
		r := newRunner(t)
		r.env = []string{"BUILDKIT_AZURE_STORAGE_ACCOUNT_URL=" + a.URL + "/acct", "BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME=acct",
			"BUILDKIT_AZURE_STORAGE_CONTAINER=ci", "BUILDKIT_AZURE_STORAGE_PREFIX=app", "AZURE_STORAGE_KEY=" + azureKey}
		r.must(dir, append(tarball(t), "--cache-from", "type=azblob,name=app")...).check(t, nil, wanted(t, dir))
	})
}
