// Package provenance says what a result was built from and how: the predicates
// that SLSA defines, in version 1 and 0.2, with what BuildKit puts into them.
//
// A Capture is made of the graph of one image and of what the frontend asked the
// engine on the way (a Call): the sources and what they were pinned to, the
// request, the ids of secrets, whether a step had a network. Predicate makes the
// document of it. In mode "min" that is all; mode "max" has the arguments of the
// request, the graph itself, and the text that it was compiled from as well.
//
// No secret's value ever comes here: the graph has ids of secrets only. Names and
// passwords that stand in URLs are replaced (Redact).
package provenance

import (
	"encoding/json"
	"time"

	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// The predicate types.
const (
	TypeV1  = "https://slsa.dev/provenance/v1"
	TypeV02 = "https://slsa.dev/provenance/v0.2"
)

// What the build types of both versions are called: the predicates are in
// BuildKit's form, which is what tools look for.
const (
	buildTypeV1  = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
	buildTypeV02 = "https://mobyproject.org/buildkit@v1"
)

// Predicate is a predicate of version 1.
type Predicate struct {
	BuildDefinition BuildDefinition `json:"buildDefinition"`
	RunDetails      RunDetails      `json:"runDetails"`
}

// BuildDefinition says what was asked for, and what that took.
type BuildDefinition struct {
	BuildType            string             `json:"buildType"`
	ExternalParameters   ExternalParameters `json:"externalParameters"`
	InternalParameters   InternalParameters `json:"internalParameters"`
	ResolvedDependencies []Material         `json:"resolvedDependencies,omitempty"`
}

// Material is a source as it was used.
type Material struct {
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest,omitempty"`
}

// ExternalParameters are what the user said.
type ExternalParameters struct {
	ConfigSource ConfigSource `json:"configSource"`
	Request      Parameters   `json:"request"`
}

// ConfigSource is where the build description came from.
type ConfigSource struct {
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest,omitempty"`
	Path   string            `json:"path,omitempty"`
}

// Parameters are a request to a frontend.
type Parameters struct {
	Frontend string              `json:"frontend,omitempty"`
	Args     map[string]string   `json:"args,omitempty"`
	Secrets  []ID                `json:"secrets,omitempty"`
	SSH      []ID                `json:"ssh,omitempty"`
	Locals   []Local             `json:"locals,omitempty"`
	Inputs   map[string]*Request `json:"inputs,omitempty"`
	Root     *Request            `json:"root,omitempty"`
	// Compatibility is set of the request that the image came from alone.
	Compatibility int `json:"compatibilityVersion,omitempty"`
}

// ID names a secret or an agent that steps were lent.
type ID struct {
	ID       string `json:"id"`
	Optional bool   `json:"optional,omitempty"`
}

// Local names a folder of the client's.
type Local struct {
	Name string `json:"name"`
}

// Request is the request that led to another one.
type Request struct {
	ConfigSource ConfigSource `json:"configSource"`
	Request      *Parameters  `json:"request,omitempty"`
}

// InternalParameters are what the builder added. Environment stands beside the
// other fields.
type InternalParameters struct {
	BuildConfig       *BuildConfig   `json:"buildConfig,omitempty"`
	BuilderPlatform   string         `json:"builderPlatform"`
	DockerfileVersion string         `json:"dockerfileVersion,omitempty"`
	Environment       map[string]any `json:"-"`
}

// MarshalJSON puts the environment beside the other fields.
func (p InternalParameters) MarshalJSON() ([]byte, error) {
	type plain InternalParameters
	return flatten(plain(p), p.Environment)
}

// flatten marshals v with further fields beside its own.
func flatten(v any, more map[string]any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil || len(more) == 0 {
		return data, err
	}
	var all map[string]any
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, err
	}
	for k, v := range more {
		if _, own := all[k]; !own {
			all[k] = v
		}
	}
	return json.Marshal(all)
}

// RunDetails say how the build went.
type RunDetails struct {
	Builder  Builder   `json:"builder"`
	Metadata *Metadata `json:"metadata,omitempty"`
}

// Builder is who built.
type Builder struct {
	ID string `json:"id"`
}

// Metadata is what is known of the run.
type Metadata struct {
	InvocationID string          `json:"invocationId,omitempty"`
	StartedOn    *time.Time      `json:"startedOn,omitempty"`
	FinishedOn   *time.Time      `json:"finishedOn,omitempty"`
	BuildKit     BuildKit        `json:"buildkit_metadata"`
	Hermetic     bool            `json:"buildkit_hermetic,omitempty"`
	Completeness CompletenessOf1 `json:"buildkit_completeness"`
	Reproducible bool            `json:"buildkit_reproducible,omitempty"`
}

// CompletenessOf1 says which parts leave nothing out.
type CompletenessOf1 struct {
	Request              bool `json:"request"`
	ResolvedDependencies bool `json:"resolvedDependencies"`
}

// BuildKit is what SLSA has no fields for.
type BuildKit struct {
	VCS    map[string]string                  `json:"vcs,omitempty"`
	Source *Source                            `json:"source,omitempty"`
	Layers map[string][][]ocispecs.Descriptor `json:"layers,omitempty"`
	// SystemUsage is what the machine did while the build went on.
	SystemUsage any `json:"sysUsage,omitempty"`
	// Network is there where steps had another way out than the machine's own.
	Network *Network `json:"network,omitempty"`
}

// Network is how steps reached others.
type Network struct {
	Mode  string        `json:"mode,omitempty"`
	Proxy *ProxyNetwork `json:"proxy,omitempty"`
}

// ProxyNetwork is what is to be said of the proxy.
type ProxyNetwork struct {
	Incomplete []Missed `json:"incomplete,omitempty"`
}

// Missed is a request of a step's of which it is not known what came.
type Missed struct {
	Op     string `json:"op,omitempty"`
	Name   string `json:"name,omitempty"` // the step's command
	Method string `json:"method,omitempty"`
	URI    string `json:"uri,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// BuildConfig is the graph. The steps' ids take the place of digests.
type BuildConfig struct {
	Definition    []Step            `json:"llbDefinition,omitempty"`
	DigestMapping map[string]string `json:"digestMapping,omitempty"`
}

// Step is a vertex.
type Step struct {
	ID     string   `json:"id,omitempty"`
	Op     *pb.Op   `json:"op,omitempty"`
	Inputs []string `json:"inputs,omitempty"`
	Usage  any      `json:"resourceUsage,omitempty"` // what it used, where it ran
}

// Source is the text that the graph was compiled from, and the lines of each step.
type Source struct {
	Locations map[string]*pb.Locations `json:"locations,omitempty"`
	Infos     []SourceInfo             `json:"infos,omitempty"`
}

// SourceInfo is a file of that text, with the graph of the file system that it
// was read from.
type SourceInfo struct {
	Filename string `json:"filename,omitempty"`
	Language string `json:"language,omitempty"`
	Data     []byte `json:"data,omitempty"`
	BuildConfig
}
