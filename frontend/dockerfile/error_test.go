package dockerfile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/kiln-build/kiln/frontend"
)

// TestErrors checks the whole text of errors: place, lines, hint.
func TestErrors(t *testing.T) {
	long := "RUN " + strings.Repeat("x", 70_000)
	for _, tt := range []struct {
		name       string
		dockerfile string
		opts       map[string]string
		ignore     string
		want       string
	}{
		{"nothing at all", "", nil, "", `
			the Dockerfile cannot be empty`},
		{"comments alone", lines("# c"), nil, "", `
			Dockerfile:1: file with no instructions
			>   1 | # c`},
		{"a step before FROM", lines("RUN x"), nil, "", `
			Dockerfile:1: no build stage in current context
			>   1 | RUN x`},
		{"an unknown instruction", lines("FROM base", "", "RUNN x", "CMD y"), nil, "", `
			Dockerfile:3: unknown instruction: RUNN
			    1 | FROM base
			    2 |
			>   3 | RUNN x
			    4 | CMD y
			did you mean RUN?`},
		{"an unknown flag", lines("FROM base", "RUN --moun=x y"), nil, "", `
			Dockerfile:2: unknown flag: --moun
			    1 | FROM base
			>   2 | RUN --moun=x y
			did you mean mount?`},
		{"too few words", lines("FROM base", "COPY a"), nil, "", `
			Dockerfile:2: COPY requires at least two arguments, but only one was provided. Destination could not be determined
			    1 | FROM base
			>   2 | COPY a`},
		{"an instruction of several lines", lines("FROM base", "RUN --mount=type=bin,target=/x \\", "  a \\", "  b"), nil, "", `
			Dockerfile:2: unsupported mount type "bin"
			    1 | FROM base
			>   2 | RUN --mount=type=bin,target=/x \
			>   3 |   a \
			>   4 |   b
			did you mean bind?`},
		{"an image that is not there", lines("FROM missing"), nil, "", `
			Dockerfile:1: missing: docker.io/library/missing:latest: not found
			>   1 | FROM missing`},
		{"an image that is a mistyped stage", lines("FROM base AS build", "FROM biuld"), nil, "", `
			Dockerfile:2: biuld: docker.io/library/biuld:latest: not found
			    1 | FROM base AS build
			>   2 | FROM biuld
			did you mean build?`},
		{"a source that is a mistyped stage", lines("FROM base AS build", "FROM base", "COPY --from=biuld a b"), nil, "", `
			Dockerfile:3: "biuld" is no stage, and as an image: docker.io/library/biuld:latest: not found
			    1 | FROM base AS build
			    2 | FROM base
			>   3 | COPY --from=biuld a b
			did you mean build?`},
		{"an image's name with capitals", lines("FROM Base"), nil, "", `
			Dockerfile:1: failed to parse stage name "Base": invalid reference format: repository name (library/Base) must be lowercase
			>   1 | FROM Base`},
		{"an empty base", lines("FROM $X"), nil, "", `
			Dockerfile:1: base name ($X) should not be blank
			>   1 | FROM $X`},
		{"a substitution without an end", lines("FROM base", "ENV A=${B"), nil, "", `
			Dockerfile:2: failed to process "${B": missing } in substitution
			    1 | FROM base
			>   2 | ENV A=${B`},
		{"a variable that must be set", lines("FROM base", `ENV A="${B:?say B}"`), nil, "", `
			Dockerfile:2: failed to process "\"${B:?say B}\"": B: say B
			    1 | FROM base
			>   2 | ENV A="${B:?say B}"`},
		{"a mistyped platform argument", lines("FROM --platform=$TARGETPLATFROM base"), nil, "", `
			Dockerfile:1: empty platform value from expression $TARGETPLATFROM
			>   1 | FROM --platform=$TARGETPLATFROM base
			did you mean TARGETPLATFORM?`},
		{"a stage number that is not there", lines("FROM base", "COPY --from=3 a b"), nil, "", `
			Dockerfile:2: invalid stage index 3
			    1 | FROM base
			>   2 | COPY --from=3 a b`},
		{"a circle", lines("FROM base AS a", "COPY --from=b / /", "FROM base AS b", "COPY --from=a / /"), nil, "", `
			Dockerfile:2: circular dependency detected on stage: a
			    1 | FROM base AS a
			>   2 | COPY --from=b / /
			    3 | FROM base AS b
			>   4 | COPY --from=a / /`},
		{"a stage that reads itself", lines("FROM base AS a", "COPY --from=a / /"), nil, "", `
			Dockerfile:2: circular dependency detected on stage: a
			    1 | FROM base AS a
			>   2 | COPY --from=a / /`},
		{"a stage that comes later", lines("FROM base AS a", "COPY --from=b / /", "FROM base AS b", "FROM a"), nil, "", `
			Dockerfile:2: cannot copy from stage "b", it needs to be defined before current stage "a"
			    1 | FROM base AS a
			>   2 | COPY --from=b / /
			    3 | FROM base AS b
			    4 | FROM a`},
		{"a mount of a stage that comes later", lines("FROM base AS a", "RUN --mount=from=b,target=/x x", "FROM base AS b", "FROM a"), nil, "", `
			Dockerfile:2: cannot mount from stage "b" to "/x", stage needs to be defined before current command
			    1 | FROM base AS a
			>   2 | RUN --mount=from=b,target=/x x
			    3 | FROM base AS b
			    4 | FROM a`},
		{"a mount over everything", lines("FROM base", "RUN --mount=target=/ y"), nil, "", `
			Dockerfile:2: invalid mount target "/"
			    1 | FROM base
			>   2 | RUN --mount=target=/ y`},
		{"a bad mode", lines("FROM base", "COPY --chmod=9 a b"), nil, "", `
			Dockerfile:2: invalid chmod parameter: '9'. it should be octal string and between 0 and 07777
			    1 | FROM base
			>   2 | COPY --chmod=9 a b`},
		{"an owner by name, with nothing to look it up in", lines("FROM base", "COPY --link --chown=bob a b"), nil, "", `
			Dockerfile:2: owner "bob": there is no /etc/passwd and /etc/group to find the name in, as nothing of a base is read here
			    1 | FROM base
			>   2 | COPY --link --chown=bob a b
			give the owner as numbers`},
		{"COPY of a URL", lines("FROM base", "COPY https://h/f /"), nil, "", `
			Dockerfile:2: source can't be a URL for COPY
			    1 | FROM base
			>   2 | COPY https://h/f /`},
		{"a checksum of local files", lines("FROM base", "ADD --checksum=sha256:aa f /"), nil, "", `
			Dockerfile:2: checksum requires HTTP(S) or Git sources
			    1 | FROM base
			>   2 | ADD --checksum=sha256:aa f /`},
		{"two opinions on .git", lines("FROM base", "ADD --keep-git-dir=false https://h/r.git?keep-git-dir=true /"), nil, "", `
			Dockerfile:2: inconsistent keep-git-dir configuration
			    1 | FROM base
			>   2 | ADD --keep-git-dir=false https://h/r.git?keep-git-dir=true /`},
		{"a port that is none", lines("FROM base", "EXPOSE 80/foo"), nil, "", `
			Dockerfile:2: invalid port: "80/foo": invalid proto: foo
			    1 | FROM base
			>   2 | EXPOSE 80/foo`},
		{"a signal that is none", lines("FROM base", "STOPSIGNAL foo"), nil, "", `
			Dockerfile:2: invalid signal: foo
			    1 | FROM base
			>   2 | STOPSIGNAL foo`},
		{"a heredoc without an end", lines("FROM base", "RUN <<EOF", "x"), nil, "", `
			Dockerfile:2: unterminated heredoc
			    1 | FROM base
			>   2 | RUN <<EOF
			    3 | x
			a heredoc ends with a line that is its word alone`},
		{"a trigger of an image", lines("FROM trigger:badcmd"), nil, "", `
			Dockerfile:1: in the trigger ONBUILD RUNN make of trigger:badcmd: unknown instruction: RUNN
			>   1 | FROM trigger:badcmd
			did you mean RUN?`},
		{"a trigger of a stage shows both places", lines("FROM base AS a", "ONBUILD COPY --from=other a b", "", "", "", "FROM a"), nil, "", `
			Dockerfile:6: "other" is no stage, and as an image: docker.io/library/other:latest: not found
			    4 |
			    5 |
			>   6 | FROM a`},
		{"a step of a trigger", lines("FROM base AS a", "ONBUILD EXPOSE x", "RUN y", "", "FROM a"), nil, "", `
			Dockerfile:5: in the trigger ONBUILD EXPOSE x of a: invalid containerPort: x
			    1 | FROM base AS a
			>   2 | ONBUILD EXPOSE x
			    3 | RUN y
			    4 |
			>   5 | FROM a`},
		{"a target that is not there", lines("FROM base AS build", "FROM base AS test"), opts("target=buld"), "", `
			target stage "buld" could not be found
			did you mean build?`},
		{"a target that is like nothing", lines("FROM base AS build", "FROM base AS test"), opts("target=production"), "", `
			target stage "production" could not be found
			the stages are build, test`},
		{"a mount from nowhere", lines("FROM base", "RUN --mount=from=other,target=/n true"), nil, "", `
			Dockerfile:2: "other" is no stage, and as an image: docker.io/library/other:latest: not found
			    1 | FROM base
			>   2 | RUN --mount=from=other,target=/n true`},
		{"a pattern that is none", lines("FROM base", "COPY --exclude=[ a /"), nil, "", `
			Dockerfile:2: --exclude=[: syntax error in pattern
			    1 | FROM base
			>   2 | COPY --exclude=[ a /`},
		{"a bad ignore file", lines("FROM base"), nil, "ok\n[\n", `
			.dockerignore:2: failed parsing .dockerignore: pattern "[": syntax error in pattern
			    1 | ok
			>   2 | [
			a [ begins a set of characters, which a ] ends; \[ is the character itself`},
		{"a bad check directive", lines("# check=foo", "FROM base"), nil, "", `
			Dockerfile:1: failed to parse check options: invalid check option "foo"
			>   1 | # check=foo
			    2 | FROM base`},
		{"warnings that are errors", lines("# check=error=true", "FROM base AS A"), nil, "", `
			Dockerfile:2: lint violation found for rules: StageNameCasing
			    1 | # check=error=true
			>   2 | FROM base AS A`},
		{"another frontend", lines("# syntax=foo/bar", "FROM base"), nil, "", `
			Dockerfile:1: frontend image foo/bar cannot be run here
			>   1 | # syntax=foo/bar
			    2 | FROM base
			docker/dockerfile, in any version, is built in`},
		{"a line that is too long", lines("FROM base", long), nil, "", `
			Dockerfile:2: dockerfile line greater than max allowed size of 65535
			    1 | FROM base
			>   2 | ` + long[:200] + `...
			divide it by \ at the ends of lines, or put the text into a file of its own and COPY it`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := (&testBuild{dockerfile: tt.dockerfile, opts: tt.opts, ignore: tt.ignore}).run()
			if err == nil {
				t.Fatal("no error")
			}
			sameText(t, "error", err.Error(), tt.want)
		})
	}
}

// TestErrorType checks what callers read of an error besides its text.
func TestErrorType(t *testing.T) {
	_, err := (&testBuild{dockerfile: lines("FROM base", "RUNN x")}).run()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error is a %T, want an *Error", err)
	}
	if len(e.Lines) != 1 || e.Lines[0] != (Lines{2, 2}) {
		t.Errorf("lines = %v, want [{2 2}]", e.Lines)
	}
	if got, want := e.Err.Error(), "unknown instruction: RUNN"; got != want {
		t.Errorf("Err = %q, want %q", got, want)
	}
	if got, want := e.Hint, "did you mean RUN?"; got != want {
		t.Errorf("Hint = %q, want %q", got, want)
	}
}

// TestNoDockerfile is the error that everybody sees once.
func TestNoDockerfile(t *testing.T) {
	b := &testBuild{dockerfile: "FROM base", opts: opts("filename=x/Dockerfile.dev")}
	_, err := b.run()
	want := `
		failed to read dockerfile: open x/Dockerfile.dev: file does not exist
		name the file with --file, or the folder that holds it as the context`
	if err == nil {
		t.Fatal("no error")
	}
	sameText(t, "error", err.Error(), want)
}

// TestLimits gives Dockerfiles that ask for too much.
func TestLimits(t *testing.T) {
	doubling := []string{"FROM base", "ENV A=0123456789"}
	for range 40 {
		doubling = append(doubling, "ENV A=$A$A")
	}
	for _, tt := range []struct{ name, dockerfile, want string }{
		{"a value that doubles with every line", lines(doubling...), "exceed 67108864 bytes"},
		{"a replacement that multiplies", lines("FROM base", "ENV A="+strings.Repeat("x", 60_000), "ENV B=${A//x/"+strings.Repeat("y", 60_000)+"}"), "exceed 67108864 bytes"},
		{"instructions without end", "FROM base\n" + strings.Repeat("RUN a\n", maxInstructions), "Dockerfile:50001: the Dockerfile comes to 50001 instructions, the limit is 50000"},
		{"lines without end", "FROM base\n" + strings.Repeat("\n", maxLines), "500001 lines, the limit is 500000"},
		{"ports without end", "FROM base\n" + strings.Repeat("EXPOSE 0-65535\n", 2000), "more than 1048576 ports are exposed"},
		{"bytes without end", "FROM base\n#" + strings.Repeat("#\n", maxFile/2), "exceeds maximum allowed size of 16777216 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := (&testBuild{dockerfile: tt.dockerfile}).run()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want one that contains %q", err, tt.want)
			}
		})
	}
}

// TestManySteps compiles a Dockerfile at the limit.
func TestManySteps(t *testing.T) {
	mustBuild(t, &testBuild{dockerfile: "FROM base\n" + strings.Repeat("RUN a\n", maxInstructions-1)})
}

// TestCancelled stops a compilation.
func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b := &fakeBridge{folders: map[string]fstest.MapFS{"local://dockerfile": {"Dockerfile": {Data: []byte("FROM base\nRUN x\n")}}}}
	_, err := New().Build(ctx, frontend.Request{Machine: amd64}, b)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want context.Canceled", err)
	}
}

// waitingBridge answers for an image called slow when the build is given up, as a
// registry client does: with the reason why.
type waitingBridge struct{ fakeBridge }

func (b *waitingBridge) ResolveImage(ctx context.Context, ref string, o frontend.ResolveOptions) (frontend.Image, error) {
	if !strings.Contains(ref, "slow") {
		return b.fakeBridge.ResolveImage(ctx, ref, o)
	}
	<-ctx.Done()
	return frontend.Image{}, fmt.Errorf("resolving %s: %w", ref, context.Cause(ctx))
}

// TestOneStageFails gives an error of one stage while another is still looked up:
// the lines are those of the first alone.
func TestOneStageFails(t *testing.T) {
	b := &waitingBridge{}
	b.folders = map[string]fstest.MapFS{"local://dockerfile": {"Dockerfile": {Data: []byte("FROM slow AS a\nFROM none\nCOPY --from=a / /\n")}}}
	_, err := New().Build(context.Background(), frontend.Request{Machine: amd64}, b)
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error = %v, want an *Error", err)
	}
	if len(e.Lines) != 1 || e.Lines[0] != (Lines{2, 2}) || strings.Contains(e.Err.Error(), "slow") {
		t.Errorf("got %v of lines %v, want one of line 2 alone", e.Err, e.Lines)
	}
}
