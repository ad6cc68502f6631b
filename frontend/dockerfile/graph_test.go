package dockerfile

import (
	"strings"
	"testing"

	"github.com/kiln-build/kiln/llb"
)

// TestGraph compiles one rule at a time. The graph is written as draw has it.
func TestGraph(t *testing.T) {
	for _, tt := range []struct {
		name       string
		dockerfile string
		ignore     string
		opts       map[string]string
		want       string
	}{
		// FROM
		{"an image is pinned and nothing else", lines("FROM base"), "", nil, `
			0 docker-image://docker.io/library/base:latest`},
		{"scratch alone has no vertex", lines("FROM scratch", "LABEL a=b"), "", nil, `
			scratch`},
		{"an image without layers is scratch", lines("FROM nothing", "COPY a b"), "", nil, `
			0 local://context local.followpaths=["a"]
			1 copy 0:/a /b on scratch`},
		{"a stage that the target does not need is not compiled", lines("FROM missing AS x", "RUN x", "FROM base"), "", nil, `
			0 docker-image://docker.io/library/base:latest`},
		{"a stage goes on from another, with its arguments", lines("FROM base AS a", "ARG X=1", "RUN a", "FROM a", "RUN b"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "a"] env:X=1
			2 run 1 ["/bin/sh" "-c" "b"] env:X=1`},
		{"the target ends the build", lines("FROM base AS a", "RUN a", "FROM a", "RUN b"), "", opts("target=a"), `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "a"]`},
		{"names of stages have no case", lines("FROM scratch AS a", "COPY x /", "FROM scratch", "COPY --from=A x /"), "", nil, `
			0 local://context local.followpaths=["x"]
			1 copy 0:/x / on scratch
			2 copy 1:/x / on scratch`},
		{"of two stages of one name the later is meant", lines("FROM base AS a", "FROM rich:1 AS a", "FROM scratch", "COPY --from=a x /"), "", nil, `
			0 docker-image://docker.io/library/rich:1
			1 copy 0:/x / on scratch`},
		{"global arguments name the base", lines("ARG I=base", "FROM $I"), "", opts("build-arg:I=rich:1"), `
			0 docker-image://docker.io/library/rich:1`},

		// RUN
		{"shell form goes through the shell", lines("FROM base", "RUN echo a && b"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "echo a && b"]`},
		{"exec form does not", lines("FROM base", `RUN ["a", "b c"]`), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["a" "b c"]`},
		{"config of the base is where steps begin", lines("FROM rich:1", "RUN x"), "", nil, `
			0 docker-image://docker.io/library/rich:1
			1 run 0 ["/bin/bash" "-c" "x"] env:PATH=/opt/bin env:A=rich dir:/home user:bob`},
		{"a script is one argument", lines("FROM base", "RUN <<EOF", "a", "b", "EOF"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "a\nb\n"]`},
		{"<<- takes tabs away", lines("FROM base", "RUN <<-EOF", "\ta", "EOF"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "a\n"]`},
		{"a script with an interpreter is a file", lines("FROM base", "RUN <<EOF", "#!/bin/py", "x", "EOF"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 mkfile /EOF 755 "#!/bin/py\nx\n" on scratch
			2 run 0 ["/bin/sh" "-c" "/dev/pipes/EOF"] bind(/dev/pipes/ 1:/ ro)`},
		{"heredocs inside a command are the shell's", lines("FROM base", "RUN cat <<A <<'B'", "a", "A", "b", "B"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "cat <<A <<'B'\na\nA\nb\nB"]`},
		{"network and security", lines("FROM base", "RUN --network=none --security=insecure x", "RUN --network=host x"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "x"] network:NONE security:INSECURE
			2 run 1 ["/bin/sh" "-c" "x"] network:HOST`},
		{"the request's network is the default", lines("FROM base", "RUN x"), "", opts("force-network-mode=host"), `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "x"] network:HOST`},
		{"devices", lines("FROM base", "RUN --device=vendor.com/d=x,required x"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "x"] device:vendor.com/d=x optional:false`},

		// RUN --mount
		{"bind mounts the context, read-only, and only what it names", lines("FROM base", "RUN --mount=source=src,target=/s x"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 local://context local.followpaths=["src"]
			2 run 0 ["/bin/sh" "-c" "x"] bind(/s 1:/src ro)`},
		{"bind from a stage, writable; a relative target is below the working directory", lines("FROM base AS a", "RUN a", "FROM base", "WORKDIR /w", "RUN --mount=from=a,target=t,rw x"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 mkdir /w 755 on 0
			2 run 0 ["/bin/sh" "-c" "a"]
			3 run 1 ["/bin/sh" "-c" "x"] dir:/w bind(/w/t 2:)`},
		{"cache mounts, in the order of their targets", lines("FROM base", "RUN --mount=type=cache,target=/z,sharing=locked --mount=type=cache,id=i,target=/a,sharing=private x"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "x"] cache(/a id=/i private) cache(/z id=//z locked)`},
		{"a cache with an owner starts as a folder that has it", lines("FROM base", "RUN --mount=type=cache,target=/a,uid=5,mode=0700 x"), "", opts("build-arg:BUILDKIT_CACHE_MOUNT_NS=ns"), `
			0 docker-image://docker.io/library/base:latest
			1 mkdir /cache 700 owner:5:0 on scratch
			2 run 0 ["/bin/sh" "-c" "x"] cache(/a 1:/cache id=ns//a shared)`},
		{"tmpfs", lines("FROM base", "RUN --mount=type=tmpfs,target=/t,size=1k x"), "", opts("shm-size=64"), `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "x"] tmpfs(/dev/shm size=64) tmpfs(/t size=1024)`},
		{"secrets as file and as variable", lines("FROM base", "RUN --mount=type=secret,id=a --mount=type=secret,id=b,env=B,required --mount=type=secret,id=c,target=/c,mode=0444,uid=1 x"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "x"] secret(/run/secrets/a id=a 0:0 400 optional=true) secret(/c id=c 1:0 444 optional=true) secretenv:B=b optional:false`},
		{"agents", lines("FROM base", "RUN --mount=type=ssh --mount=type=ssh,id=k,target=/s,required x"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "x"] env:SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0 ssh(/run/buildkit/ssh_agent.0 id= 0:0 600 optional=true) ssh(/s id=k 0:0 600 optional=false)`},

		// COPY and ADD
		{"COPY reads of the context what it copies", lines("FROM scratch", "COPY a b/ c*.txt /d/"), "", nil, `
			0 local://context local.followpaths=["a","b","c*.txt"]
			1 copy 0:/a /d/ on scratch; copy 0:/b /d/ on .; copy 0:/c*.txt /d/ on .`},
		{"COPY . reads all of it, less what is ignored", lines("FROM scratch", "COPY a /", "COPY . /"), "*.md\n!x.md\n", nil, `
			0 local://context local.excludepatterns=["*.md","!x.md"]
			1 copy 0:/a / on scratch
			2 copy 0:/ / on 1`},
		{"targets are relative to the working directory, and keep their slash", lines("FROM scratch", "WORKDIR /w", "COPY a .", "COPY a d/", "COPY a ../e", "COPY a /f/."), "", nil, `
			0 mkdir /w 755 on scratch
			1 local://context local.followpaths=["a"]
			2 copy 1:/a /w/ on 0
			3 copy 1:/a /w/d/ on 2
			4 copy 1:/a /e on 3
			5 copy 1:/a /f/. on 4`},
		{"sources cannot leave the context", lines("FROM scratch", "COPY ../../a /b"), "", nil, `
			0 local://context local.followpaths=["a"]
			1 copy 0:/a /b on scratch`},
		{"owners by number and name", lines("FROM scratch", "COPY --chown=1:2 a /", "COPY --chown=bob a /", "COPY --chown=:staff a /", "COPY --chown=root:0 a /"), "", nil, `
			0 local://context local.followpaths=["a"]
			1 copy 0:/a / owner:1:2 on scratch
			2 copy 0:/a / owner:bob on 1
			3 copy 0:/a / owner:0:staff on 2
			4 copy 0:/a / owner:0:0 on 3`},
		{"modes, octal and symbolic", lines("FROM scratch", "COPY --chmod=4755 a /", "COPY --chmod=u=rwX,go= a /"), "", nil, `
			0 local://context local.followpaths=["a"]
			1 copy 0:/a / 4755 on scratch
			2 copy 0:/a / u=rwX,go= on 1`},
		{"--exclude", lines("FROM scratch", "COPY --exclude=*.md --exclude=x a /"), "", nil, `
			0 local://context local.followpaths=["a"]
			1 copy 0:/a / exclude[*.md x] on scratch`},
		{"--parents, with a pivot, without, with wildcards", lines("FROM scratch", "COPY --parents x/./y/z w/v *.c /p/"), "", nil, `
			0 local://context local.followpaths=["*.c","w/v","x/y/z"]
			1 copy 0:/x /p/ include[y/z] require[/x/y/z] on scratch; copy 0:/ /p/ include[w/v] require[/w/v] on .; copy 0:/ /p/ include[*.c] on .`},
		{"--link merges", lines("FROM base", "COPY --link a /"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 local://context local.followpaths=["a"]
			2 copy 1:/a / on scratch
			3 merge 0 2`},
		{"--link on scratch has nothing to merge with", lines("FROM scratch", "COPY --link a /"), "", nil, `
			0 local://context local.followpaths=["a"]
			1 copy 0:/a / on scratch`},
		{"--link with --chmod does not", lines("FROM base", "COPY --link --chmod=600 a /"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 local://context local.followpaths=["a"]
			2 copy 1:/a / 600 on 0`},
		{"--from a stage, by name and number, and an image", lines("FROM scratch AS a", "COPY x /", "FROM base", "COPY --from=a x /", "COPY --from=0 x /", "COPY --from=rich:1 x /"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 local://context local.followpaths=["x"]
			2 copy 1:/x / on scratch
			3 copy 2:/x / on 0
			4 copy 2:/x / on 3
			5 docker-image://docker.io/library/rich:1
			6 copy 5:/x / on 4`},
		{"heredocs are files; variables in them are replaced unless the name is quoted", lines("FROM scratch", "ENV A=1", "COPY <<x <<'y' /d/", "$A \"q\"", "x", "$A", "y"), "", nil, `
			0 mkfile /x 644 "1 \"q\"\n" on scratch
			1 mkfile /y 644 "$A\n" on scratch
			2 copy 0:/x /d/ plain on scratch; copy 1:/y /d/ plain on .`},
		{"ADD unpacks, unless told not to", lines("FROM scratch", "ADD a.tar /", "ADD --unpack=false a.tar /"), "", nil, `
			0 local://context local.followpaths=["a.tar"]
			1 copy 0:/a.tar / unpack on scratch
			2 copy 0:/a.tar / on 1`},
		{"ADD of a URL", lines("FROM scratch", "ADD https://h/d/f.tgz?q /x/", "ADD --unpack http://h/ /y"), "", nil, `
			0 https://h/d/f.tgz?q http.filename=f.tgz
			1 copy 0:/f.tgz /x/ plain on scratch
			2 http://h/ http.filename=__unnamed__
			3 copy 2:/__unnamed__ /y unpack plain on 1`},
		{"ADD with a checksum", lines("FROM scratch", "ADD --checksum=sha256:24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d https://h/f /x"), "", nil, `
			0 https://h/f http.checksum=sha256:24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d http.filename=f
			1 copy 0:/f /x plain on scratch`},
		{"ADD of a repository", lines("FROM scratch", "ADD --keep-git-dir https://h/r.git#v1:sub /x"), "", nil, `
			0 git://h/r.git#v1:sub git.fullurl=https://h/r.git git.keepgitdir=true
			1 copy 0:/ /x plain on scratch`},
		{"ADD of a repository by query, over ssh", lines("FROM scratch", "ADD git@h:r.git?branch=b&subdir=s&submodules=false&commit=abc /x"), "", nil, `
			0 git://h/r.git#refs/heads/b:s git.checksum=abc git.fullurl=git@h:r.git git.mountsshsock=default git.skipsubmodules=true
			1 copy 0:/ /x plain on scratch`},

		// WORKDIR, USER, ENV, ARG
		{"WORKDIR makes the folder, for the user", lines("FROM scratch", "WORKDIR a", "USER bob:1", "WORKDIR b/../c", "WORKDIR /"), "", nil, `
			0 mkdir /a 755 on scratch
			1 mkdir /a/c 755 owner:bob:1 on 0`},
		{"variables reach steps in the order of their last setting", lines("FROM base", "ARG A=1", "ENV B=$A A=2", "ARG C", "ARG D=d", "RUN x"), "", opts("build-arg:C=c"), `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "x"] env:B=1 env:A=2 env:C=c env:D=d`},
		{"a global argument comes into a stage by being declared", lines("ARG G=1", "ARG H=2", "FROM base", "ARG G", "ARG H=3", "RUN x"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "x"] env:G=1 env:H=3`},
		{"platform arguments", lines("FROM base", "ARG TARGETPLATFORM TARGETARCH BUILDOS TARGETSTAGE", "RUN x"), "", opts("platform=linux/arm64", "target="), `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "x"] env:TARGETPLATFORM=linux/arm64 env:TARGETARCH=arm64 env:BUILDOS=linux env:TARGETSTAGE=default`},
		{"an argument that nobody gave is no variable", lines("FROM base", "ARG A", "RUN x"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "x"]`},

		// ONBUILD
		{"an image's triggers come first", lines("FROM trigger", "RUN after"), "", nil, `
			0 docker-image://docker.io/library/trigger:latest
			1 local://context
			2 copy 1:/ /src on 0
			3 run 2 ["/bin/sh" "-c" "make"]
			4 run 3 ["/bin/sh" "-c" "after"]`},
		{"a stage's triggers are for the stage right above", lines("FROM base AS a", "ONBUILD RUN t", "FROM a AS b", "RUN b", "FROM b", "RUN c"), "", nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "t"]
			2 run 1 ["/bin/sh" "-c" "b"]
			3 run 2 ["/bin/sh" "-c" "c"]`},
		{"a trigger may have a comment", lines("FROM trigger:comment"), "", nil, `
			0 docker-image://docker.io/library/trigger:comment
			1 run 0 ["/bin/sh" "-c" "x"]`},
		{"a trigger may need a stage", lines("FROM base AS dep", "RUN dep", "FROM trigger:stage"), "", nil, `
			0 docker-image://docker.io/library/trigger:stage
			1 docker-image://docker.io/library/base:latest
			2 run 1 ["/bin/sh" "-c" "dep"]
			3 copy 2:/x /y on 0`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			img := mustBuild(t, &testBuild{dockerfile: tt.dockerfile, ignore: tt.ignore, opts: tt.opts})
			sameText(t, "graph", draw(img.Root), tt.want)
		})
	}
}

// TestNames checks what progress displays show, by vertex.
func TestNames(t *testing.T) {
	for _, tt := range []struct {
		name       string
		dockerfile string
		opts       map[string]string
		want       string
	}{
		{"one stage has no name", lines("FROM base", "RUN a"), nil, `
			[1/2] FROM docker.io/library/base:latest
			[2/2] RUN a`},
		{"stages have theirs or a number", lines("FROM base AS build", "run $A", "FROM scratch", "COPY --from=build /a /b"), nil, `
			[build 1/2] FROM docker.io/library/base:latest
			[build 2/2] RUN $A
			[stage-1 1/1] COPY --from=build /a /b`},
		{"what is known is shown expanded", lines("FROM base", "ENV D=/d", "WORKDIR $D", "COPY a $D"), nil, `
			[1/3] FROM docker.io/library/base:latest
			[2/3] WORKDIR /d
			[internal] load build context
			[3/3] COPY a /d`},
		{"a heredoc is told by its first line", lines("FROM base", "RUN <<EOF", "one", "two", "EOF"), nil, `
			[1/2] FROM docker.io/library/base:latest
			[2/2] RUN <<EOF (one...)`},
		{"secrets are not shown", lines("FROM base", "RUN --mount=type=secret,id=s,env=S echo $S"), nil, `
			[stage-0 1/2] FROM docker.io/library/base:latest
			[stage-0 2/2] RUN --mount=type=secret,id=s,env=S echo ****`},
		{"triggers say so", lines("FROM base AS a", "ONBUILD RUN t", "FROM a"), nil, `
			[a 1/1] FROM docker.io/library/base:latest
			[stage-1 1/1] ONBUILD RUN t`},
		{"a link is two", lines("FROM base", "COPY --link a b"), nil, `
			[1/2] FROM docker.io/library/base:latest
			[internal] load build context
			[2/2] COPY --link a b
			[2/2] LINK COPY --link a b`},
		{"platforms are told apart", lines("FROM --platform=$BUILDPLATFORM base", "ARG TARGETARCH", "RUN a"), opts("platform=linux/arm64", "multi-platform=true"), `
			[linux/amd64 1/2] FROM docker.io/library/base:latest
			[linux/amd64->arm64 2/2] RUN a`},
		{"numbers are aligned", lines("FROM base", "RUN 1", "RUN 2", "RUN 3", "RUN 4", "RUN 5", "RUN 6", "RUN 7", "RUN 8", "RUN 9"), nil, `
			[ 1/10] FROM docker.io/library/base:latest
			[ 2/10] RUN 1
			[ 3/10] RUN 2
			[ 4/10] RUN 3
			[ 5/10] RUN 4
			[ 6/10] RUN 5
			[ 7/10] RUN 6
			[ 8/10] RUN 7
			[ 9/10] RUN 8
			[10/10] RUN 9`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			img := mustBuild(t, &testBuild{dockerfile: tt.dockerfile, opts: tt.opts})
			var got []string
			for _, v := range llb.Walk(img.Root) {
				name, _, _ := strings.Cut(v.Meta().Name, "@sha256")
				got = append(got, name)
			}
			sameText(t, "names", strings.Join(got, "\n"), tt.want)
		})
	}
}

// TestMeta checks what vertices say of themselves besides their names.
func TestMeta(t *testing.T) {
	b := &testBuild{
		dockerfile: lines("FROM base", "RUN a \\", "  b", "FROM base AS c", "COPY x y", "FROM c", "RUN z"),
		opts:       opts("no-cache=c", "memory=1000"),
	}
	img := mustBuild(t, b)
	var copied, ran llb.Meta
	for _, v := range llb.Walk(img.Root) {
		switch v.Kind() {
		case "exec":
			ran = v.Meta()
		case "file":
			copied = v.Meta()
		}
	}
	if !copied.IgnoreCache || ran.IgnoreCache {
		t.Errorf("no-cache=c: the step of c ignores its record: %v, that of the last stage: %v", copied.IgnoreCache, ran.IgnoreCache)
	}
	if got := ran.Resources.GetMemory(); got != 1000 {
		t.Errorf("memory of a step = %d, want 1000", got)
	}
	if l := ran.Locations; len(l) != 1 || l[0].Start != 7 || l[0].End != 7 || l[0].File.Name != "Dockerfile" {
		t.Errorf("location of RUN z = %+v, want line 7 of Dockerfile", l)
	}
	if got, want := ran.Description["com.docker.dockerfile.v1.command"], "RUN z"; got != want {
		t.Errorf("description = %q, want %q", got, want)
	}
}
