// Package all knows every exporter by the name that "--output type=" has for it.
package all

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/local"
	"github.com/kiln-build/kiln/exporter/oci"
	"github.com/kiln-build/kiln/exporter/push"
	"github.com/kiln-build/kiln/exporter/tar"
)

// types are the exporters.
var types = map[string]func(exporter.Env, map[string]string) (exporter.Exporter, error){
	"docker":   func(e exporter.Env, a map[string]string) (exporter.Exporter, error) { return oci.New(e, true, a) },
	"image":    func(e exporter.Env, a map[string]string) (exporter.Exporter, error) { return push.New(e, false, a) },
	"local":    func(e exporter.Env, a map[string]string) (exporter.Exporter, error) { return local.New(e, a) },
	"oci":      func(e exporter.Env, a map[string]string) (exporter.Exporter, error) { return oci.New(e, false, a) },
	"registry": func(e exporter.Env, a map[string]string) (exporter.Exporter, error) { return push.New(e, true, a) },
	"tar":      func(e exporter.Env, a map[string]string) (exporter.Exporter, error) { return tar.New(e, a) },
}

// Types gives the names of the exporters.
func Types() []string { return slices.Sorted(maps.Keys(types)) }

// New makes an exporter of a type. Attributes that it does not know are ignored,
// as BuildKit ignores them; values that make no sense are an error.
func New(kind string, attrs map[string]string, env exporter.Env) (exporter.Exporter, error) {
	make, ok := types[kind]
	if !ok {
		return nil, fmt.Errorf("unknown exporter type %q; there are %s", kind, strings.Join(Types(), ", "))
	}
	e, err := make(env, attrs)
	if err != nil {
		return nil, fmt.Errorf("output of type %s: %w", kind, err)
	}
	return e, nil
}
