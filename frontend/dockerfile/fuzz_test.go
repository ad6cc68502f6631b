package dockerfile

import (
	"testing"
	"time"
)

// FuzzCompile compiles whatever comes, for two platforms and as a check of all
// stages: nothing panics or hangs, and what compiles is a graph.
func FuzzCompile(f *testing.F) {
	for _, s := range []string{
		lines("FROM base AS a", "RUN --mount=type=cache,target=/c,from=a x", "FROM a", "COPY --link --parents --chown=a:b --from=0 a/./b* c"),
		lines("ARG A=b", "FROM ${A:-x}", "ENV X=${A#*/} Y=${X//a/b}", "WORKDIR $X", "EXPOSE 1-3/udp", "HEALTHCHECK --interval=3s CMD x"),
		lines("# check=error=true", "# escape=`", "FROM --platform=$BUILDPLATFORM trigger", "ONBUILD RUN x", "SHELL [\"a\"]", "CMD b"),
		lines("FROM scratch", "COPY <<a <<-'b' /", "$X", "a", "\tc", "b", "ADD https://h/r.git?ref=x#y:z /", "ADD --checksum=sha256:00 http://h/ /"),
		lines("FROM base AS a", "ONBUILD COPY --from=b x y", "FROM a AS b", "RUN <<EOF", "#!/bin/sh", "EOF"),
	} {
		f.Add(s, "a*\n!b\n")
	}
	f.Fuzz(func(t *testing.T, dockerfile, ignore string) {
		start := time.Now()
		for _, o := range []map[string]string{
			opts("platform=linux/amd64,linux/arm64", "build-arg:A=x"),
			opts("requestid=frontend.lint"),
			opts("requestid=frontend.outline"),
		} {
			res, err := (&testBuild{dockerfile: dockerfile, ignore: ignore, opts: o}).run()
			if err != nil {
				continue
			}
			for _, img := range res.Images {
				draw(img.Root)
			}
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("took %v", d)
		}
	})
}

func BenchmarkCompile(b *testing.B) {
	text := "FROM base\n"
	for range 30 {
		text += "ARG A=1\nENV B=$A\nRUN make $B\nCOPY a b/ ./\n"
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := (&testBuild{dockerfile: text}).run(); err != nil {
			b.Fatal(err)
		}
	}
}
