package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/request"
)

// How much of the provenance the file of --metadata-file holds, in buildx's words.
const (
	provenanceMin  = "min"
	provenanceMax  = "max"
	provenanceNone = "disabled"
)

// metadataProvenance reads how much that is from the environment, as buildx does.
func metadataProvenance() string {
	switch v := os.Getenv("BUILDX_METADATA_PROVENANCE"); v {
	case provenanceMin, provenanceMax, provenanceNone:
		return v
	default:
		if yes, err := strconv.ParseBool(v); err == nil && !yes {
			return provenanceNone
		}
	}
	return provenanceMin
}

// metadataWarnings reads whether it holds the build's warnings.
func metadataWarnings() bool {
	yes, err := strconv.ParseBool(os.Getenv("BUILDX_METADATA_WARNINGS"))
	return err == nil && yes
}

// provenanceV1 and provenanceV02 are the types of predicates that are understood.
const (
	provenanceV1  = "https://slsa.dev/provenance/v1"
	provenanceV02 = "https://slsa.dev/provenance/v0.2"
)

// object is a JSON object.
type object = map[string]any

// predicate gives a provenance in the form that buildx writes into that file: of
// version 0.2, whichever the daemon has.
func predicate(p request.Provenance, mode string) (object, error) {
	var out object
	if err := json.Unmarshal(p.Data, &out); err != nil {
		return nil, fmt.Errorf("reading the provenance: %w", err)
	}
	switch p.Type {
	case provenanceV1:
		out = version02(out)
	case provenanceV02:
	default:
		return nil, fmt.Errorf("the provenance is of an unknown type, %q", p.Type)
	}
	if mode == provenanceMin {
		delete(out, "buildConfig")
		delete(out, "metadata")
	}
	return out, nil
}

// version02 gives a predicate of version 1 as one of version 0.2: the same facts in
// other places.
func version02(p object) object {
	definition, run := maps.Clone(within(p, "buildDefinition")), within(p, "runDetails")
	external, internal := within(definition, "externalParameters"), maps.Clone(within(definition, "internalParameters"))
	source := maps.Clone(within(external, "configSource"))
	move(source, "path", source, "entryPoint")
	out := object{
		"builder": within(run, "builder"), "buildType": "https://mobyproject.org/buildkit@v1",
		"invocation": object{"configSource": source, "parameters": within(external, "request"), "environment": internal},
	}
	move(internal, "buildConfig", out, "buildConfig")
	move(internal, "builderPlatform", internal, "platform")
	move(definition, "resolvedDependencies", out, "materials")
	if _, ok := run["metadata"]; ok {
		meta := maps.Clone(within(run, "metadata"))
		complete := within(meta, "buildkit_completeness")
		for from, to := range map[string]string{
			"invocationId": "buildInvocationID", "invocationID": "buildInvocationID", "startedOn": "buildStartedOn", "finishedOn": "buildFinishedOn",
			"buildkit_reproducible": "reproducible",
			"buildkit_metadata":     "https://mobyproject.org/buildkit@v1#metadata", "buildkit_hermetic": "https://mobyproject.org/buildkit@v1#hermetic",
		} {
			move(meta, from, meta, to)
		}
		delete(meta, "buildkit_completeness")
		meta["completeness"] = object{
			"parameters": complete["request"] == true, "environment": true, "materials": complete["resolvedDependencies"] == true,
		}
		if meta["reproducible"] == nil {
			meta["reproducible"] = false
		}
		out["metadata"] = meta
	}
	return out
}

// within gives the object of that name in another; an empty one where there is none.
func within(o object, name string) object {
	if v, ok := o[name].(object); ok {
		return v
	}
	return object{}
}

// move takes a value out of one object and puts it into another.
func move(from object, name string, to object, as string) {
	if v, ok := from[name]; ok {
		delete(from, name)
		to[as] = v
	}
}

// provenanceKey is the name that buildx gives the provenance of an image.
func provenanceKey(p request.Provenance) string {
	return strings.TrimSuffix("buildx.build.provenance/"+p.Platform, "/")
}
