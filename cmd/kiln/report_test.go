package main

import (
	"encoding/json"
	"testing"

	"github.com/kiln-build/kiln/request"
)

func TestMetadataJSON(t *testing.T) {
	got, err := json.Marshal(metadataJSON(&request.Result{Metadata: map[string]string{
		"a": "sha256:00",        // a word
		"b": `{"size":1}`,       // an object
		"c": "eyJzaXplIjoyfQ==", // an object, as daemons send descriptors
		"d": "dGV4dA==",         // a word that could be read as base64
		"e": "{half",            // no object
	}}))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"a":"sha256:00","b":{"size":1},"c":{"size":2},"d":"dGV4dA==","e":"{half"}`
	if string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
