package dockerfile

import (
	"slices"
	"strings"
	"testing"
)

// TestWarnings has a row for each rule that the compiler or the parser checks.
func TestWarnings(t *testing.T) {
	for _, tt := range []struct {
		name, dockerfile, ignore string
		want                     []string // the beginnings of the warnings
	}{
		{"nothing to say", lines("FROM base AS a", "RUN x", `CMD ["y"]`), "", nil},
		{"StageNameCasing", lines("FROM base AS Foo"), "", []string{"StageNameCasing: Stage name 'Foo' should be lowercase (line 1)"}},
		{"FromAsCasing", lines("FROM base as a"), "", []string{"FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)"}},
		{"NoEmptyContinuation", lines("FROM base", "RUN a \\", "", "  b"), "", []string{"NoEmptyContinuation: Empty continuation line (line 4)"}},
		{"ConsistentInstructionCasing", lines("FROM base", "run a", "RUN b"), "", []string{"ConsistentInstructionCasing: Command 'run' should match the case of the command majority (uppercase) (line 2)"}},
		{"ConsistentInstructionCasing, for small letters", lines("from base", "run a", "RUN b"), "", []string{"ConsistentInstructionCasing: Command 'RUN' should match the case of the command majority (lowercase) (line 3)"}},
		{"DuplicateStageName", lines("FROM base AS a", "FROM base AS a"), "", []string{`DuplicateStageName: Duplicate stage name "a", stage names should be unique (line 2)`}},
		{"ReservedStageName", lines("FROM base AS context"), "", []string{"ReservedStageName: Stage name should not use the same name as reserved stage \"context\" (line 1)"}},
		{"JSONArgsRecommended", lines("FROM base", "CMD x"), "", []string{"JSONArgsRecommended: JSON arguments recommended for CMD"}},
		{"not where a shell was chosen", lines("FROM base", `SHELL ["s"]`, "CMD x", "ENTRYPOINT y"), "", nil},
		{"MaintainerDeprecated", lines("FROM base", "MAINTAINER x"), "", []string{"MaintainerDeprecated: "}},
		{"UndefinedArgInFrom", lines("ARG BASE=base", "FROM $BASF"), "", []string{"UndefinedArgInFrom: FROM argument 'BASF' is not declared (did you mean BASE?) (line 2)", "InvalidDefaultArgInFrom: "}},
		{"WorkdirRelativePath, once", lines("FROM base", "WORKDIR a", "WORKDIR b"), "", []string{"WorkdirRelativePath: Relative workdir \"a\" can have unexpected results if the base image changes (line 2)"}},
		{"UndefinedVar", lines("FROM base", "ENV FOO=1", "COPY $FOX /"), "", []string{"UndefinedVar: Usage of undefined variable '$FOX' (did you mean $FOO?) (line 3)"}},
		{"a declared argument is not undefined", lines("FROM base", "ARG X", "COPY a$X /"), "", nil},
		{"MultipleInstructionsDisallowed shows the one that is lost", lines("FROM base", `CMD ["a"]`, `CMD ["b"]`), "", []string{"MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because only the last one will be used (line 2)"}},
		{"LegacyKeyValueFormat", lines("FROM base", "ENV a b", "LABEL c d"), "", []string{`LegacyKeyValueFormat: "ENV key=value" should be used instead of legacy "ENV key value" format (line 2)`, "LegacyKeyValueFormat: "}},
		{"RedundantTargetPlatform", lines("FROM --platform=$TARGETPLATFORM base"), "", []string{"RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior (line 1)"}},
		{"SecretsUsedInArgOrEnv", lines("FROM base", "ARG API_TOKEN", "ENV PASSWORD=x PUBLIC_KEY=y"), "", []string{`SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG "API_TOKEN") (line 2)`, "SecretsUsedInArgOrEnv: "}},
		{"InvalidDefaultArgInFrom", lines("ARG TAG", "FROM base:$TAG"), "", []string{"InvalidDefaultArgInFrom: Default value for ARG base:$TAG results in empty or invalid base image name (line 2)"}},
		{"FromPlatformFlagConstDisallowed", lines("FROM --platform=linux/amd64 base"), "", []string{"FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value \"linux/amd64\" (line 1)"}},
		{"not where the stage's name says it", lines("FROM --platform=linux/amd64 base AS amd64-tools"), "", nil},
		{"CopyIgnoredFile", lines("FROM base", "COPY a.md b.txt /", "ADD d/x /"), "*.md\nd\n", []string{`CopyIgnoredFile: Attempting to Copy file "a.md" that is excluded by .dockerignore (line 2)`, `CopyIgnoredFile: Attempting to Add file "d/x" that is excluded by .dockerignore (line 3)`}},
		{"CopyIgnoredFile of everything", lines("FROM base", "COPY . /"), "*\n", []string{"CopyIgnoredFile: "}},
		{"patterns that take back are not judged", lines("FROM base", "COPY a.md /"), "*.md\n!a.md\n", nil},
		{"InvalidBaseImagePlatform", lines("FROM arm"), "", []string{`InvalidBaseImagePlatform: Base image arm was pulled with platform "linux/arm64", expected "linux/amd64" for current build (line 1)`}},
		{"ExposeProtoCasing, ExposeInvalidFormat", lines("FROM base", "EXPOSE 80/TCP 1:2"), "", []string{"ExposeInvalidFormat: ", "ExposeProtoCasing: "}},
		{"the directive skips rules", lines("# check=skip=StageNameCasing", "FROM base AS Foo"), "", nil},
		{"a comment skips them for an instruction", lines("FROM base", "# check=skip=JSONArgsRecommended", "CMD x"), "", nil},
		{"experimental rules are off", lines("# b", "FROM base AS a"), "", nil},
		{"InvalidDefinitionDescription, when it is switched on", lines("# check=experimental=all", "", "# nothing", "ARG A", "FROM base"), "", []string{"InvalidDefinitionDescription: Comment for ARG should follow the format: `# A <description>` (line 4)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &testBuild{dockerfile: tt.dockerfile, ignore: tt.ignore}
			_, err := b.run()
			got := b.bridge.warnings
			if len(got) != len(tt.want) {
				t.Fatalf("warnings %q, want %q (error: %v)", got, tt.want, err)
			}
			for i, w := range tt.want {
				if !slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, w) }) {
					t.Errorf("warning %d: none of %q begins with %q", i, got, w)
				}
			}
		})
	}
}
