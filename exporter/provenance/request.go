package provenance

import (
	"maps"
	"reflect"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
)

// hostArgs are arguments that say where a build runs, not what it builds.
var hostArgs = map[string]bool{"cgroup-parent": true, "image-resolve-mode": true, "platform": true, "cache-imports": true}

// The kinds of arguments that mode "min" leaves out: what users put into them is
// theirs to know.
var privateArgs = []string{"build-arg:", "label:"}

// Args gives the attributes of a request that a provenance may have.
func Args(attrs map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range attrs {
		if !hostArgs[k] && !strings.HasPrefix(k, "attest:") {
			out[k] = Redact(v)
		}
	}
	return out
}

// NewRequest gives a request as a provenance has it: where the description came
// from, apart from the other arguments. sources say what its address stood for;
// nil knows nothing.
func NewRequest(frontend string, args map[string]string, sources *Capture) *Request {
	args = maps.Clone(args)
	r := &Request{Request: &Parameters{Frontend: frontend}}
	context := "context"
	if v := args["contextkey"]; v != "" {
		context = v
	} else if args["input:context"] != "" {
		context = "input:context"
	}
	if v := args[context]; v != "" {
		r.ConfigSource.URI = v
		if m, ok := sources.find(v); ok {
			r.ConfigSource.URI, r.ConfigSource.Digest = m.URI, m.Digest
		}
		delete(args, context)
	}
	if v := args["filename"]; v != "" {
		r.ConfigSource.Path = v
		delete(args, "filename")
	}
	if len(args) > 0 {
		r.Request.Args = args
	}
	return r
}

// find gives the material that an address stands for.
func (c *Capture) find(uri string) (Material, bool) {
	if c == nil {
		return Material{}, false
	}
	full, ok := dfgitutil.FragmentFormat(uri, true)
	if !ok {
		full = uri
	}
	plain, _ := dfgitutil.FragmentFormat(uri, false)
	for _, g := range c.Git {
		if g.URL == plain {
			return Material{full, commitDigest(g.Commit)}, true
		}
	}
	for _, h := range c.HTTP {
		if h.URL == uri {
			return Material{h.URL, digestSet(h.Digest)}, true
		}
	}
	return Material{}, false
}

// private takes out what mode "min" leaves out, and reports whether arguments were among it.
func (p *Parameters) private() (took bool) {
	if p == nil {
		return false
	}
	args := map[string]string{}
	for k, v := range p.Args {
		keep := true
		for _, prefix := range privateArgs {
			keep = keep && !strings.HasPrefix(k, prefix)
		}
		if keep {
			args[k] = v
		}
		took = took || !keep
	}
	p.Args, p.Secrets, p.SSH = args, nil, nil
	for _, in := range p.Inputs {
		took = in.Request.private() || took
	}
	if p.Root != nil {
		took = p.Root.Request.private() || took
	}
	return took
}

// clone gives a copy that can be changed.
func (r *Request) clone() *Request {
	if r == nil {
		return nil
	}
	out := *r
	if r.Request != nil {
		p := *r.Request
		p.Args, p.Root = maps.Clone(p.Args), p.Root.clone()
		p.Inputs = cloneAll(p.Inputs)
		out.Request = &p
	}
	return &out
}

func cloneAll(in map[string]*Request) map[string]*Request {
	if len(in) == 0 {
		return nil
	}
	out := map[string]*Request{}
	for k, r := range in {
		out[k] = r.clone()
	}
	return out
}

func commitDigest(commit string) map[string]string {
	if len(commit) == 64 {
		return map[string]string{"sha256": commit}
	}
	return map[string]string{"sha1": commit}
}

func digestSet(d string) map[string]string {
	alg, hex, ok := strings.Cut(d, ":")
	if !ok {
		return nil
	}
	return map[string]string{alg: hex}
}

// Equal reports whether two requests say the same.
func (r *Request) Equal(o *Request) bool { return reflect.DeepEqual(r, o) }
