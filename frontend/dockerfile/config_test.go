package dockerfile

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// drawConfig writes down what a config says: the fields that are set, in JSON, and
// the history, "-" before an entry without a layer.
func drawConfig(t *testing.T, config []byte) string {
	t.Helper()
	var img Image
	if err := json.Unmarshal(config, &img); err != nil {
		t.Fatal(err)
	}
	var fields map[string]json.RawMessage
	dt, err := json.Marshal(img.Config)
	if err == nil {
		err = json.Unmarshal(dt, &fields)
	}
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, key := range []string{"User", "WorkingDir", "Env", "Shell", "Entrypoint", "Cmd", "ArgsEscaped", "Labels", "ExposedPorts", "Volumes", "Healthcheck", "OnBuild", "StopSignal"} {
		if v, ok := fields[key]; ok {
			out = append(out, fmt.Sprintf("%s %s", key, v))
		}
	}
	if img.Author != "" {
		out = append(out, "Author "+img.Author)
	}
	for _, h := range img.History {
		mark := "+"
		if h.EmptyLayer {
			mark = "-"
		}
		line := mark + " " + h.CreatedBy
		if h.Created != nil {
			line += fmt.Sprint(" at ", h.Created.Unix())
		}
		if h.Comment != historyComment {
			line += " (" + h.Comment + ")"
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// TestConfig checks configs and histories. PATH is left out of the expectations
// where it is the default one.
func TestConfig(t *testing.T) {
	const defaultPath = `"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"`
	for _, tt := range []struct {
		name       string
		dockerfile string
		opts       map[string]string
		want       string
	}{
		{"scratch has a PATH and a folder", lines("FROM scratch", "COPY a /"), nil, `
			WorkingDir "/"
			Env [PATH]
			+ COPY a / # buildkit`},
		{"the base's config and history are kept", lines("FROM base"), nil, `
			Env ["PATH=/bin"]
			Cmd ["sh"]
			+ base ()`},
		{"everything is inherited", lines("FROM rich:1"), nil, `
			User "bob"
			WorkingDir "/home"
			Env ["PATH=/opt/bin","A=rich"]
			Shell ["/bin/bash","-c"]
			Entrypoint ["/e"]
			Cmd ["c"]
			Labels {"from":"rich"}
			ExposedPorts {"80/tcp":{}}
			Volumes {"/v":{}}
			Healthcheck {"Test":["CMD","x"]}`},
		{"RUN notes its command, with the arguments that it saw", lines("FROM scratch", "ARG A=1", "ENV B=2", "ARG C", "RUN x y", `RUN ["e", "f"]`), nil, `
			WorkingDir "/"
			Env [PATH,"B=2"]
			- ARG A=1
			- ENV B=2
			- ARG C
			+ RUN |2 A=1 C= /bin/sh -c x y # buildkit
			+ RUN |2 A=1 C= e f # buildkit`},
		{"ENV replaces a variable in its place, and wins over an ARG of that name", lines("FROM rich:1", "ENV A=1 Z=2", "ARG A=3", "ENV PATH=/x"), nil, `
			User "bob"
			WorkingDir "/home"
			Env ["PATH=/x","A=1","Z=2"]
			Shell ["/bin/bash","-c"]
			Entrypoint ["/e"]
			Cmd ["c"]
			Labels {"from":"rich"}
			ExposedPorts {"80/tcp":{}}
			Volumes {"/v":{}}
			Healthcheck {"Test":["CMD","x"]}
			- ENV A=1 Z=2
			- ARG A=3
			- ENV PATH=/x`},
		{"COPY and ADD note flags and words as they were expanded", lines("FROM scratch", "ENV D=/d", "COPY --link --chown=1:2 --chmod=644 a b $D/", "ADD https://h/f /", "COPY --parents x/./y /", "COPY <<f /", "f"), nil, `
			WorkingDir "/"
			Env [PATH,"D=/d"]
			- ENV D=/d
			+ COPY --chown=1:2 --chmod=644 a b /d/ # buildkit
			+ ADD https://h/f / # buildkit
			+ COPY --parents x/./y / # buildkit
			+ COPY <<f / # buildkit`},
		{"WORKDIR notes the whole path; / is no layer", lines("FROM scratch", "WORKDIR a", "WORKDIR b", "WORKDIR /"), nil, `
			WorkingDir "/"
			Env [PATH]
			+ WORKDIR /a
			+ WORKDIR /a/b
			- WORKDIR /`},
		{"an ENTRYPOINT takes away the base's CMD", lines("FROM base", "ENTRYPOINT e"), nil, `
			Env ["PATH=/bin"]
			Entrypoint ["/bin/sh","-c","e"]
			+ base ()
			- ENTRYPOINT ["/bin/sh" "-c" "e"]`},
		{"but not the stage's own", lines("FROM base", `CMD ["c"]`, `ENTRYPOINT ["e"]`), nil, `
			Env ["PATH=/bin"]
			Entrypoint ["e"]
			Cmd ["c"]
			ArgsEscaped true
			+ base ()
			- CMD ["c"]
			- ENTRYPOINT ["e"]`},
		{"SHELL is for what follows", lines("FROM scratch", "CMD a", `SHELL ["/bin/zsh", "-c"]`, "ENTRYPOINT b", "RUN c"), nil, `
			WorkingDir "/"
			Env [PATH]
			Shell ["/bin/zsh","-c"]
			Entrypoint ["/bin/zsh","-c","b"]
			Cmd ["/bin/sh","-c","a"]
			ArgsEscaped true
			- CMD ["/bin/sh" "-c" "a"]
			- SHELL [/bin/zsh -c]
			- ENTRYPOINT ["/bin/zsh" "-c" "b"]
			+ RUN /bin/zsh -c c # buildkit`},
		{"LABEL, and the request's labels", lines("FROM rich:1", `LABEL a=b "c d"="e f"`, "LABEL from=here"), opts("label:x=y", "label:a=z"), `
			User "bob"
			WorkingDir "/home"
			Env ["PATH=/opt/bin","A=rich"]
			Shell ["/bin/bash","-c"]
			Entrypoint ["/e"]
			Cmd ["c"]
			Labels {"a":"z","c d":"e f","from":"here","x":"y"}
			ExposedPorts {"80/tcp":{}}
			Volumes {"/v":{}}
			Healthcheck {"Test":["CMD","x"]}
			- LABEL a=b c d=e f
			- LABEL from=here`},
		{"EXPOSE: ranges, protocols, the forms of docker run; words are sorted as they stand", lines("FROM scratch", "ARG P=7", "EXPOSE 80 90-91/udp $P", "EXPOSE 127.0.0.1:8000:81/TCP"), nil, `
			WorkingDir "/"
			Env [PATH]
			ExposedPorts {"7/tcp":{},"80/tcp":{},"81/tcp":{},"90/udp":{},"91/udp":{}}
			- ARG P=7
			- EXPOSE [7/tcp 80/tcp 90/udp 91/udp]
			- EXPOSE [81/tcp]`},
		{"VOLUME in both forms", lines("FROM scratch", "VOLUME /a /b", `VOLUME ["/c d"]`), nil, `
			WorkingDir "/"
			Env [PATH]
			Volumes {"/a":{},"/b":{},"/c d":{}}
			- VOLUME [/a /b]
			- VOLUME [/c d]`},
		{"HEALTHCHECK with flags", lines("FROM scratch", "HEALTHCHECK --interval=5s --timeout=1m --start-period=2s --start-interval=3s --retries=4 CMD x y"), nil, `
			WorkingDir "/"
			Env [PATH]
			Healthcheck {"Test":["CMD-SHELL","x y"],"Interval":5000000000,"Timeout":60000000000,"StartPeriod":2000000000,"StartInterval":3000000000,"Retries":4}
			- HEALTHCHECK {Test:[CMD-SHELL x y] Interval:5s Timeout:1m0s StartPeriod:2s StartInterval:3s Retries:4}`},
		{"HEALTHCHECK NONE", lines("FROM rich:1", "HEALTHCHECK NONE", "USER root", "STOPSIGNAL SIGQUIT"), nil, `
			User "root"
			WorkingDir "/home"
			Env ["PATH=/opt/bin","A=rich"]
			Shell ["/bin/bash","-c"]
			Entrypoint ["/e"]
			Cmd ["c"]
			Labels {"from":"rich"}
			ExposedPorts {"80/tcp":{}}
			Volumes {"/v":{}}
			Healthcheck {"Test":["NONE"]}
			StopSignal "SIGQUIT"
			- HEALTHCHECK {Test:[NONE] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}
			- USER root
			- STOPSIGNAL SIGQUIT`},
		{"ONBUILD is kept for others and is no history", lines("FROM scratch", "ONBUILD RUN x", "ONBUILD COPY a b", "MAINTAINER me"), nil, `
			WorkingDir "/"
			Env [PATH]
			OnBuild ["RUN x","COPY a b"]
			Author me
			- MAINTAINER me`},
		{"triggers that ran are gone", lines("FROM trigger"), nil, `
			Env [PATH]
			+ COPY . /src # buildkit
			+ RUN /bin/sh -c make # buildkit`},
		{"SOURCE_DATE_EPOCH dates the entries that are made", lines("FROM base", "WORKDIR /w", "ENV A=b"), opts("build-arg:SOURCE_DATE_EPOCH=77"), `
			WorkingDir "/w"
			Env ["PATH=/bin","A=b"]
			Cmd ["sh"]
			+ base ()
			+ WORKDIR /w at 77
			- ENV A=b at 77`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			img := mustBuild(t, &testBuild{dockerfile: tt.dockerfile, opts: tt.opts})
			got := strings.ReplaceAll(drawConfig(t, img.Config), defaultPath, "PATH")
			sameText(t, "config", got, tt.want)
		})
	}
}

// TestSubstitution checks every form of ${...}, as the value of X.
func TestSubstitution(t *testing.T) {
	for _, tt := range []struct{ word, want string }{
		{`$V`, "foo/bar.tar.gz"},
		{`${V}`, "foo/bar.tar.gz"},
		{`a${V}b`, "afoo/bar.tar.gzb"},
		{`\$V`, "$V"},
		{`'$V'`, "$V"},
		{`"$V"`, "foo/bar.tar.gz"},
		{`$U`, ""},
		{`${U:-d}`, "d"},
		{`${E:-d}`, "d"},
		{`${E-d}`, ""},
		{`${U-d}`, "d"},
		{`${V:+d}`, "d"},
		{`${E:+d}`, ""},
		{`${E+d}`, "d"},
		{`${U+d}`, ""},
		{`${U:-$V}`, "foo/bar.tar.gz"},
		{`${V:?no}`, "foo/bar.tar.gz"},
		{`${V#*/}`, "bar.tar.gz"},
		{`${V#*o}`, "o/bar.tar.gz"},
		{`${V##*o}`, "/bar.tar.gz"},
		{`${V%.*}`, "foo/bar.tar"},
		{`${V%%.*}`, "foo/bar"},
		{`${V/o/0}`, "f0o/bar.tar.gz"},
		{`${V//o/0}`, "f00/bar.tar.gz"},
		{`${V//a?/-}`, "foo/b-.t-.gz"},
	} {
		t.Run(tt.word, func(t *testing.T) {
			b := &testBuild{dockerfile: lines("FROM base", "ENV V=foo/bar.tar.gz E=", `ENV X=`+tt.word)}
			var img Image
			if err := json.Unmarshal(mustBuild(t, b).Config, &img); err != nil {
				t.Fatal(err)
			}
			if got := img.Config.Env[len(img.Config.Env)-1]; got != "X="+tt.want {
				t.Errorf("%s gives %q, want %q", tt.word, got, "X="+tt.want)
			}
		})
	}
}
