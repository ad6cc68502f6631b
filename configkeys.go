package kiln

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
	"github.com/pelletier/go-toml/v2"
)

// parse reads the file, and notes the keys that say nothing to kiln.
func (c *Config) parse(data []byte) error {
	d := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	err := d.Decode(c)
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		c.sort(strict.Errors)
		err = nil
	}
	if err == nil && c.Worker.OCI.Enabled != nil && !*c.Worker.OCI.Enabled {
		err = errors.New("worker.oci.enabled is false, and kiln has no other worker")
	}
	for i, p := range c.Worker.OCI.Policies {
		if err != nil {
			break
		}
		if ferr := p.checkFilters(); ferr != nil {
			err = fmt.Errorf("worker.oci.gcpolicy %d, %w", i+1, ferr)
		}
	}
	return err
}

// ignored are keys of buildkitd.toml that kiln has no use for, with the reason; what
// lies below them is ignored too.
var ignored = map[string]string{
	"trace":                           "log.level does the same",
	"log.format":                      "kiln prints lines of text",
	"otel":                            "kiln sends no traces",
	"system":                          "the worker's platforms are found when they are asked for, and connections are bounded for each registry",
	"cache.gha":                       "the cache at GitHub's service has no settings",
	"grpc.securityDescriptor":         "it is for Windows",
	"worker.containerd":               "kiln runs steps itself",
	"worker.oci.labels":               "the worker has labels of its own",
	"worker.oci.platforms":            "the worker's platforms are those that this machine runs",
	"worker.oci.snapshotter":          "kiln keeps layers itself",
	"worker.oci.proxySnapshotterPath": "kiln keeps layers itself",
	"worker.oci.stargzSnapshotter":    "kiln keeps layers itself",
	"worker.oci.rootless":             "kiln sees by itself that it has no root",
	"worker.oci.noProcessSandbox":     "steps always have processes of their own",
	"worker.oci.networkMode":          "the network of steps is the host's, or none",
	"worker.oci.cniConfigPath":        "kiln runs no CNI plugins",
	"worker.oci.cniBinaryPath":        "kiln runs no CNI plugins",
	"worker.oci.cniPoolSize":          "kiln runs no CNI plugins",
	"worker.oci.bridgeName":           "kiln makes no bridge",
	"worker.oci.bridgeSubnet":         "kiln makes no bridge",
	"worker.oci.apparmor-profile":     "steps run under no AppArmor profile",
	"worker.oci.selinux":              "steps run under no SELinux label",
	"worker.oci.userRemapUnsupported": "steps run with the ids of the daemon",
}

// sort puts keys that are no field of Config among those that are ignored or unknown.
func (c *Config) sort(keys []toml.DecodeError) {
	known := knownKeys()
	seen := map[string]bool{}
	for i := range keys {
		key := strings.Join(keys[i].Key(), ".")
		if key == "registry" || strings.HasPrefix(key, "registry.") || seen[key] {
			continue // package registry knows its own
		}
		seen[key] = true
		row, _ := keys[i].Position()
		if why, ok := reason(key); ok {
			c.Ignored = append(c.Ignored, fmt.Sprintf("line %d: %s is ignored: %s", row, key, why))
			continue
		}
		line := fmt.Sprintf("line %d: there is no key %s", row, key)
		if near := nearest(key, known); near != "" {
			line += "; did you mean " + near + "?"
		}
		c.Unknown = append(c.Unknown, line)
	}
}

// reason says why a key is ignored.
func reason(key string) (string, bool) {
	for {
		if why, ok := ignored[key]; ok {
			return why, true
		}
		i := strings.LastIndexByte(key, '.')
		if i < 0 {
			return "", false
		}
		key = key[:i]
	}
}

// knownKeys gives all keys that Config has, and those that are ignored.
func knownKeys() []string {
	var keys []string
	var walk func(prefix string, t reflect.Type)
	walk = func(prefix string, t reflect.Type) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct {
			return
		}
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
			switch {
			case name == "-":
			case name == "" && f.Anonymous:
				walk(prefix, f.Type)
			case name != "":
				keys = append(keys, prefix+name)
				walk(prefix+name+".", f.Type)
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	for key := range ignored {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// maxTypos is how many letters may be wrong in a key that another is proposed for.
const maxTypos = 3

// nearest gives the key that was meant; empty where none is near. A key in the wrong
// table is near too.
func nearest(key string, known []string) string {
	best, distance := "", maxTypos+1
	last := key[strings.LastIndexByte(key, '.')+1:]
	for _, k := range known {
		d := levenshtein.Distance(strings.ToLower(key), strings.ToLower(k), nil)
		if k[strings.LastIndexByte(k, '.')+1:] == last {
			d = min(d, maxTypos)
		}
		if d < distance {
			best, distance = k, d
		}
	}
	return best
}
