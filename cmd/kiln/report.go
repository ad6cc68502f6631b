package main

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"

	"github.com/moby/buildkit/client"

	"github.com/kiln-build/kiln/request"
)

// imageID gives the digest by which buildx calls an image: its configuration's, or its
// index's where it has several. It is empty where there is no image.
func imageID(r *request.Result) string {
	return cmp.Or(r.Metadata["containerimage.config.digest"], r.Digest)
}

// report writes the image's id and the metadata where the flags say. The build
// has that name at its daemon, and warned of that.
func (o *buildOptions) report(r *request.Result, ref string, warnings []client.VertexWarning) error {
	id := imageID(r)
	if o.quiet && id != "" {
		fmt.Fprintln(o.stdout, id)
	}
	if o.iidfile != "" {
		if err := os.WriteFile(o.iidfile, []byte(id), 0o644); err != nil {
			return fmt.Errorf("writing the image id: %w", err)
		}
	}
	if o.metadataFile == "" {
		return nil
	}
	all := metadataJSON(r)
	if err := o.describeBuild(all, r, ref, warnings); err != nil {
		return err
	}
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.metadataFile, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the metadata: %w", err)
	}
	return nil
}

// builder is what stands for the names of a builder and of its node, which kiln does
// not have, before the names of builds that buildx writes.
const builder = "kiln/kiln/"

// describeBuild adds what is known of the build beside its outputs, as buildx does.
func (o *buildOptions) describeBuild(all map[string]any, r *request.Result, ref string, warnings []client.VertexWarning) error {
	all["buildx.build.ref"] = builder + ref
	mode := metadataProvenance()
	for _, p := range r.Provenance {
		said, err := predicate(p, mode)
		if err != nil {
			return err
		}
		all[provenanceKey(p)] = said
	}
	if metadataWarnings() && len(warnings) > 0 {
		all["buildx.build.warnings"] = warnings
	}
	return nil
}

// metadataJSON gives a result's metadata with those values that are JSON as such,
// as buildx writes them.
func metadataJSON(r *request.Result) map[string]any {
	out := map[string]any{}
	for k, v := range r.Metadata {
		out[k] = v
		if raw := []byte(v); isObject(raw) {
			out[k] = json.RawMessage(raw)
		} else if raw, err := base64.StdEncoding.DecodeString(v); err == nil && isObject(raw) {
			out[k] = json.RawMessage(raw) // descriptors come so
		}
	}
	return out
}

// isObject reports whether data is an object or a list in JSON.
func isObject(data []byte) bool {
	return len(data) > 0 && (data[0] == '{' || data[0] == '[') && json.Valid(data)
}
