package kiln

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestReadProvenanceEnv(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  map[string]any
		fails string
	}{
		{"members of all files, the later ones last", map[string]string{"a.json": `{"x": 1, "y": {"z": "a"}}`, "b.json": `{"x": 2}`},
			map[string]any{"x": 2.0, "y": map[string]any{"z": "a"}}, ""},
		{"files of other kinds say nothing", map[string]string{"a.txt": "no json", "d.json/f": ""}, map[string]any{}, ""},
		{"no object", map[string]string{"a.json": `[1]`}, nil, "a.json"},
		{"cut off", map[string]string{"a.json": `{"x": `}, nil, "a.json"},
		{"the builder's own", map[string]string{"a.json": `{"builderPlatform": "vax"}`}, nil, `"builderPlatform"`},
		{"too large", map[string]string{"a.json": `{"x": "` + strings.Repeat("x", maxProvenanceEnv) + `"}`}, nil, "larger than"},
	} {
		dir := t.TempDir()
		for name, data := range tt.files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := readProvenanceEnv(dir)
		if tt.fails != "" {
			if err == nil || !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("%s: got %v, want an error with %s", tt.name, err, tt.fails)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %v, %v; want %v", tt.name, got, err, tt.want)
		}
	}
	if got, err := readProvenanceEnv(filepath.Join(t.TempDir(), "missing")); got != nil || err != nil {
		t.Errorf("a folder that is not there: got %v, %v", got, err)
	}
}
