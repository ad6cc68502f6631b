package kiln

import (
	"testing"

	"github.com/kiln-build/kiln/cache/remote/azblob"
	"github.com/kiln-build/kiln/cache/remote/s3"
)

// A cache is taken for one that the build reads where both are one place: names are for
// people, and two buckets may have one.
func TestCachesOfOneName(t *testing.T) {
	bucket := func(o s3.Options) *s3.Store {
		o.Bucket, o.Name, o.Region = "ci", "main", "r"
		store, err := s3.New(o)
		if err != nil {
			t.Fatal(err)
		}
		return store
	}
	container := func(blobs string) *azblob.Store {
		store, err := azblob.New(azblob.Options{URL: "https://a.blob.core.windows.net", Container: "ci", Name: "main", Key: "a2V5", BlobsPrefix: blobs})
		if err != nil {
			t.Fatal(err)
		}
		return store
	}
	here := bucket(s3.Options{Endpoint: "http://a"})
	blobs := container("blobs/")
	for _, test := range []struct {
		name   string
		source cacheSource
		target cacheTarget
		want   bool
	}{
		{"the same", cacheSource{name: "n", store: here}, cacheTarget{name: "n", store: bucket(s3.Options{Endpoint: "http://a"})}, true},
		{"another server", cacheSource{name: "n", store: here}, cacheTarget{name: "n", store: bucket(s3.Options{Endpoint: "http://b"})}, false},
		{"other blobs", cacheSource{name: "n", store: here}, cacheTarget{name: "n", store: bucket(s3.Options{Endpoint: "http://a", BlobsPrefix: "x/"})}, false},
		{"another kind", cacheSource{name: "n", store: here}, cacheTarget{name: "n", store: blobs}, false},
		{"the same container", cacheSource{name: "n", store: blobs}, cacheTarget{name: "n", store: container("blobs/")}, true},
		{"other blobs in it", cacheSource{name: "n", store: blobs}, cacheTarget{name: "n", store: container("")}, false},
		{"by name", cacheSource{name: "n"}, cacheTarget{name: "n"}, true},
		{"by another name", cacheSource{name: "n"}, cacheTarget{name: "m"}, false},
	} {
		if got := test.target.is(test.source); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
}
