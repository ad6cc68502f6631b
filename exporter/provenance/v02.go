package provenance

import "time"

// PredicateV02 is a predicate of version 0.2: the same facts in other places.
type PredicateV02 struct {
	Builder     Builder      `json:"builder"`
	BuildType   string       `json:"buildType"`
	Materials   []Material   `json:"materials,omitempty"`
	Invocation  Invocation   `json:"invocation"`
	BuildConfig *BuildConfig `json:"buildConfig,omitempty"`
	Metadata    *MetadataV02 `json:"metadata,omitempty"`
}

// Invocation is what was asked for.
type Invocation struct {
	ConfigSource ConfigSourceV02 `json:"configSource"`
	Parameters   Parameters      `json:"parameters"`
	Environment  Environment     `json:"environment"`
}

// ConfigSourceV02 is a ConfigSource.
type ConfigSourceV02 struct {
	URI        string            `json:"uri,omitempty"`
	Digest     map[string]string `json:"digest,omitempty"`
	EntryPoint string            `json:"entryPoint,omitempty"`
}

// Environment is where the build ran. More stands beside the other fields.
type Environment struct {
	Platform          string         `json:"platform"`
	DockerfileVersion string         `json:"dockerfileVersion,omitempty"`
	More              map[string]any `json:"-"`
}

// MarshalJSON puts More beside the other fields.
func (e Environment) MarshalJSON() ([]byte, error) {
	type plain Environment
	return flatten(plain(e), e.More)
}

// MetadataV02 is what is known of the run.
type MetadataV02 struct {
	BuildInvocationID string          `json:"buildInvocationID,omitempty"`
	BuildStartedOn    *time.Time      `json:"buildStartedOn,omitempty"`
	BuildFinishedOn   *time.Time      `json:"buildFinishedOn,omitempty"`
	Completeness      CompletenessV02 `json:"completeness"`
	Reproducible      bool            `json:"reproducible"`
	BuildKit          BuildKit        `json:"https://mobyproject.org/buildkit@v1#metadata"`
	Hermetic          bool            `json:"https://mobyproject.org/buildkit@v1#hermetic,omitempty"`
}

// CompletenessV02 says which parts leave nothing out.
type CompletenessV02 struct {
	Parameters  bool `json:"parameters"`
	Environment bool `json:"environment"`
	Materials   bool `json:"materials"`
}

// V02 gives the predicate in version 0.2.
func (p *Predicate) V02() *PredicateV02 {
	def := p.BuildDefinition
	out := &PredicateV02{
		Builder: p.RunDetails.Builder, BuildType: buildTypeV02, Materials: def.ResolvedDependencies,
		BuildConfig: def.InternalParameters.BuildConfig,
		Invocation: Invocation{
			ConfigSource: ConfigSourceV02{
				URI: def.ExternalParameters.ConfigSource.URI, Digest: def.ExternalParameters.ConfigSource.Digest,
				EntryPoint: def.ExternalParameters.ConfigSource.Path,
			},
			Parameters: def.ExternalParameters.Request,
			Environment: Environment{
				Platform: def.InternalParameters.BuilderPlatform, DockerfileVersion: def.InternalParameters.DockerfileVersion,
				More: def.InternalParameters.Environment,
			},
		},
	}
	if m := p.RunDetails.Metadata; m != nil {
		out.Metadata = &MetadataV02{
			BuildInvocationID: m.InvocationID, BuildStartedOn: m.StartedOn, BuildFinishedOn: m.FinishedOn,
			Completeness: CompletenessV02{
				Parameters: m.Completeness.Request, Environment: true, Materials: m.Completeness.ResolvedDependencies,
			},
			Reproducible: m.Reproducible, BuildKit: m.BuildKit, Hermetic: m.Hermetic,
		}
	}
	return out
}
