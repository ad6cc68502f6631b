package main

import (
	"encoding/csv"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"golang.org/x/term"

	"github.com/kiln-build/kiln/request"
)

// parseOutputs reads the --output flags, --push and --tag.
func parseOutputs(o *buildOptions) ([]request.Output, error) {
	var outputs []request.Output
	for _, s := range o.outputs {
		out, err := parseOutput(s, o)
		if err != nil {
			return nil, err
		}
		if out.Type == "cacheonly" { // buildx's name for none
			continue
		}
		outputs = append(outputs, out)
	}
	if o.push {
		pushed := false
		for i := range outputs {
			if t := outputs[i].Type; t == "image" || t == "registry" {
				outputs[i].Attrs["push"] = "true"
				pushed = true
			}
		}
		if !pushed {
			outputs = append(outputs, request.Output{Type: "registry", Attrs: map[string]string{}})
		}
	}
	if err := checkTags(o.tags); err != nil {
		return nil, err
	}
	for _, a := range o.annotations {
		if _, _, err := annotation(a); err != nil {
			return nil, err
		}
	}
	written := 0
	for i := range outputs {
		if err := completeOutput(&outputs[i], o); err != nil {
			return nil, err
		}
		if outputs[i].Writer != nil {
			written++
		}
	}
	if written > 1 {
		return nil, usagef("%d outputs go to standard output, which takes one; give the others dest=FILE", written)
	}
	return outputs, nil
}

// parseOutput reads one --output: comma-separated NAME=VALUE fields as in a CSV
// file, or a path alone.
func parseOutput(s string, o *buildOptions) (request.Output, error) {
	out := request.Output{Attrs: map[string]string{}}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return out, usagef("--output %q: %v", s, err)
	}
	if len(fields) == 1 && !strings.Contains(fields[0], "=") {
		if fields[0] == "-" {
			out.Type = "tar"
			return out, stdoutOutput(&out, s, o)
		}
		out.Type, out.Dest = "local", fields[0]
		return out, nil
	}
	for _, f := range fields {
		name, value, ok := strings.Cut(f, "=")
		if !ok {
			return out, usagef("--output %q: %q is not NAME=VALUE", s, f)
		}
		switch name = strings.ToLower(strings.TrimSpace(name)); name {
		case "type":
			out.Type = value
		case "dest":
			out.Dest = value
		default:
			out.Attrs[name] = value
		}
	}
	switch out.Type {
	case "":
		return out, usagef("--output %q: a type is missing (type=oci, docker, image, registry, local or tar)", s)
	case "local":
		if out.Dest == "" || out.Dest == "-" {
			return out, usagef("--output %q: type=local needs dest=FOLDER", s)
		}
	case "oci", "docker", "tar":
		if out.Dest == "" || out.Dest == "-" {
			out.Dest = ""
			return out, stdoutOutput(&out, s, o)
		}
	}
	return out, nil
}

// stdoutOutput sends a tarball to standard output, unless that is a terminal.
func stdoutOutput(out *request.Output, s string, o *buildOptions) error {
	if f, ok := o.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return usagef("--output %q: standard output is a terminal; give dest=FILE, or send it to a file or pipe", s)
	}
	out.Writer = o.stdout
	return nil
}

// completeOutput gives an output the names and annotations of the other flags.
func completeOutput(out *request.Output, o *buildOptions) error {
	if out.Attrs["name"] == "" && len(o.tags) > 0 && out.Type != "local" && out.Type != "tar" {
		out.Attrs["name"] = strings.Join(o.tags, ",")
	}
	if (out.Type == "registry" || out.Attrs["push"] == "true") && out.Attrs["name"] == "" {
		return usagef("pushing needs a name: give --tag REGISTRY/NAME:TAG")
	}
	if err := checkOutput(out, o); err != nil {
		return err
	}
	for _, a := range o.annotations {
		keys, value, err := annotation(a)
		if err != nil {
			return err
		}
		for _, key := range keys {
			out.Attrs[key] = value
		}
	}
	return nil
}

// checkTags finds what is no image's name before anything is built.
func checkTags(tags []string) error {
	for _, t := range tags {
		if _, err := reference.ParseNormalizedNamed(t); err != nil {
			return usagef("--tag %s: %v", t, err)
		}
	}
	return nil
}

// checkOutput finds what an output could not be written as, before anything is built.
func checkOutput(out *request.Output, o *buildOptions) error {
	if out.Type == "docker" && len(splitAll(o.platforms)) > 1 {
		return usagef("--output type=docker holds the image of one platform; type=oci holds those of several")
	}
	if out.Type == "local" || out.Attrs["tar"] == "false" {
		return nil
	}
	if info, err := os.Stat(out.Dest); err == nil && info.IsDir() {
		return usagef("--output dest=%s is a folder; name a file, dest=%s for one", out.Dest, filepath.Join(out.Dest, "image.tar"))
	}
	return nil
}

// annotationTypes are what an annotation can be put on, before a colon.
var annotationTypes = []string{"manifest", "index", "manifest-descriptor", "index-descriptor"}

// annotation gives the exporter attributes of [TYPE[,TYPE…]:]NAME=VALUE, where each
// TYPE may carry a platform in brackets, and which all have that value.
func annotation(s string) (keys []string, value string, err error) {
	what, value, ok := strings.Cut(s, "=")
	types, name, typed := strings.Cut(what, ":")
	if !typed {
		types, name = "", what
	}
	if !ok || name == "" {
		return nil, "", usagef("--annotation %q: want [TYPE:]NAME=VALUE", s)
	}
	if !typed {
		return []string{"annotation." + name}, value, nil
	}
	for t := range strings.SplitSeq(types, ",") {
		base, platform, limited := strings.Cut(t, "[")
		if !slices.Contains(annotationTypes, base) || limited && !strings.HasSuffix(platform, "]") {
			return nil, "", usagef("--annotation %q: there is no type %q; the types are %s, or one with a platform, manifest[linux/arm64]", s, t, strings.Join(annotationTypes, ", "))
		}
		keys = append(keys, "annotation-"+t+"."+name)
	}
	return keys, value, nil
}

// sortedKeys gives the keys of a map in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
