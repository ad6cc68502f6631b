package kiln

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kiln-build/kiln/cache/remote"
	"github.com/kiln-build/kiln/cache/remote/azblob"
	"github.com/kiln-build/kiln/cache/remote/gha"
	"github.com/kiln-build/kiln/cache/remote/s3"
)

// cacheServers gives the caches at servers, which are read and written alike; none for
// what is no type of those.
func cacheServers(kind string, a attrs, here bool) (t []cacheTarget, err error) {
	switch kind {
	case "http":
		store, err := httpStore(a)
		if err != nil {
			return nil, err
		}
		return []cacheTarget{{name: store.Name(), store: store}}, nil
	case "s3":
		stores, parallel, err := s3Stores(a)
		for _, store := range stores {
			t = append(t, cacheTarget{name: store.Name(), store: store, parallel: parallel})
		}
		return t, err
	case "azblob":
		stores, err := azblobStores(a, here)
		for _, store := range stores {
			t = append(t, cacheTarget{name: store.Name(), store: store})
		}
		return t, err
	case "gha":
		stores, timeout, err := ghaStores(a, here)
		for _, store := range stores {
			t = append(t, cacheTarget{name: store.Name(), store: store, timeout: timeout})
		}
		return t, err
	}
	return nil, nil
}

// httpStore gives the cache that url= and name= stand for.
func httpStore(a attrs) (*remote.HTTP, error) {
	address, name := a.take("url"), a.take("name")
	if address == "" {
		return nil, errors.New("url=ADDRESS is missing")
	}
	if name == "" {
		name = "main"
	}
	patience, err := a.patience()
	if err != nil {
		return nil, err
	}
	return remote.NewHTTP(address, name, patience)
}

// s3Stores gives a cache for each of the names that name= lists.
func s3Stores(a attrs) (stores []*s3.Store, parallel int, err error) {
	o := s3.Options{
		Bucket: a.take("bucket"), Region: a.take("region"), Endpoint: a.first("endpoint_url", "endpoint"),
		KeyID: a.take("access_key_id"), Secret: a.take("secret_access_key"), Token: a.take("session_token"),
	}
	if o.Bucket == "" {
		o.Bucket = os.Getenv("AWS_BUCKET")
	}
	if o.Bucket == "" {
		return nil, 0, errors.New("bucket=NAME (or AWS_BUCKET) is missing")
	}
	if (o.KeyID == "") != (o.Secret == "") {
		return nil, 0, errors.New("access_key_id and secret_access_key are given together or not at all")
	}
	if o.PathStyle, err = a.bool("use_path_style", false); err != nil {
		return nil, 0, err
	}
	if o.PlainEncoding, err = a.bool("disable_accept_encoding", false); err != nil {
		return nil, 0, err
	}
	if o.Touch, err = a.duration("touch_refresh", 24*time.Hour); err != nil {
		return nil, 0, err
	}
	if o.Patience, err = a.patience(); err != nil {
		return nil, 0, err
	}
	if v := a.take("upload_parallelism"); v != "" {
		if parallel, err = strconv.Atoi(v); err != nil || parallel < 1 || parallel > 64 {
			return nil, 0, fmt.Errorf("upload_parallelism=%s: want a number from 1 to 64", v)
		}
	}
	prefix := a.take("prefix")
	o.BlobsPrefix = prefix + a.or("blobs_prefix", "blobs/")
	o.ManifestsPrefix = prefix + a.or("manifests_prefix", "kiln/")
	names, err := a.names()
	if err != nil {
		return nil, 0, err
	}
	for _, o.Name = range names {
		store, err := s3.New(o)
		if err != nil {
			return nil, 0, err
		}
		stores = append(stores, store)
	}
	return stores, parallel, nil
}

// azblobStores gives a cache for each of the names that name= lists. On this machine
// the environment says what the attributes do not.
func azblobStores(a attrs, here bool) (stores []*azblob.Store, err error) {
	say := func(attribute, variable, otherwise string) string {
		v := a.take(attribute)
		if v == "" && here {
			v = os.Getenv(variable)
		}
		return cmp.Or(v, otherwise)
	}
	o := azblob.Options{
		URL:       say("account_url", "BUILDKIT_AZURE_STORAGE_ACCOUNT_URL", ""),
		Account:   say("account_name", "BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME", ""),
		Container: say("container", "BUILDKIT_AZURE_STORAGE_CONTAINER", "buildkit-cache"),
		Key:       say("secret_access_key", "AZURE_STORAGE_KEY", ""),
	}
	prefix := say("prefix", "BUILDKIT_AZURE_STORAGE_PREFIX", "")
	o.BlobsPrefix = path.Join(prefix, a.or("blobs_prefix", "blobs"))
	o.ManifestsPrefix = path.Join(prefix, a.or("manifests_prefix", "kiln"))
	switch {
	case o.URL == "":
		return nil, errors.New("account_url=https://ACCOUNT.blob.core.windows.net is missing")
	case o.Key == "":
		return nil, errors.New("secret_access_key=KEY (or AZURE_STORAGE_KEY) is missing: kiln logs in with the account's key only")
	}
	if o.Patience, err = a.patience(); err != nil {
		return nil, err
	}
	names, err := a.names()
	if err != nil {
		return nil, err
	}
	for _, o.Name = range names {
		store, err := azblob.New(o)
		if err != nil {
			return nil, err
		}
		stores = append(stores, store)
	}
	return stores, nil
}

// ghaStores gives a cache for each branch that the job may read, its own first.
// Clients of a daemon send what is in their environment; for those on this machine
// it is looked up here.
func ghaStores(a attrs, here bool) (stores []*gha.Store, timeout time.Duration, err error) {
	o := gha.Options{URL: a.take("url_v2"), Token: a.take("token"), Name: a.or("scope", "kiln")}
	old, version := a.take("url"), a.take("version")
	if version == "1" {
		return nil, 0, errors.New("version=1: GitHub has shut that version of its cache service down")
	}
	if version != "" && version != "2" {
		return nil, 0, fmt.Errorf("version=%s: want 2", version)
	}
	if o.URL == "" && (version == "2" || strings.Contains(old, "results-receiver.")) {
		o.URL = old
	}
	if here && o.URL == "" {
		o.URL = os.Getenv("ACTIONS_RESULTS_URL")
	}
	if here && o.Token == "" {
		o.Token = os.Getenv("ACTIONS_RUNTIME_TOKEN")
	}
	if o.URL == "" || o.Token == "" {
		return nil, 0, errors.New("url_v2 and token are missing; in a job they are ACTIONS_RESULTS_URL and ACTIONS_RUNTIME_TOKEN, which a step has to be given (see docs/caching.md)")
	}
	if timeout, err = a.duration("timeout", cacheExportTimeout); err != nil {
		return nil, 0, err
	}
	if o.Patience, err = a.patience(); err != nil {
		return nil, 0, err
	}
	// Others need these two to list what the service has. kiln's index says it.
	a.take("repository")
	a.take("ghtoken")
	scopes := gha.Scopes(o.Token)
	slices.SortStableFunc(scopes, func(x, y gha.Scope) int {
		return map[bool]int{true: 0, false: 1}[x.Write] - map[bool]int{true: 0, false: 1}[y.Write]
	})
	if len(scopes) == 0 {
		scopes = []gha.Scope{{}}
	}
	for _, scope := range scopes {
		o.Ref = scope.Ref
		store, err := gha.New(o)
		if err != nil {
			return nil, 0, err
		}
		stores = append(stores, store)
	}
	return stores, timeout, nil
}
