//go:build parity

package parity

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"
)

// comparison says what is looked at beyond what always is.
type comparison struct {
	times bool
	// compression makes the layers' media types count: without a compression that was
	// asked for, BuildKit writes a layer in whichever form an earlier build left it.
	compression bool
}

// compareImages gives a line for each thing in which two builds' images differ.
func compareImages(want, got []*image, how comparison) []string {
	if w, g := platforms(want), platforms(got); w != g {
		return []string{fmt.Sprintf("platforms: buildkit %s, kiln %s", w, g)}
	}
	var out []string
	for i := range want {
		prefix := ""
		if len(want) > 1 {
			prefix = want[i].platform + ": "
		}
		for _, line := range compareImage(want[i], got[i], how) {
			out = append(out, prefix+line)
		}
	}
	return out
}

func platforms(images []*image) string {
	var names []string
	for _, i := range images {
		names = append(names, i.platform)
	}
	return strings.Join(names, " ")
}

func compareImage(want, got *image, how comparison) []string {
	d := &differences{}
	d.add("manifest media type", want.manifest.MediaType, got.manifest.MediaType)
	d.add("config media type", want.manifest.Config.MediaType, got.manifest.Config.MediaType)
	d.add("manifest annotations", toJSON(want.manifest.Annotations), toJSON(got.manifest.Annotations))
	d.add("layers", fmt.Sprint(len(want.manifest.Layers)), fmt.Sprint(len(got.manifest.Layers)))
	if how.compression && len(want.manifest.Layers) == len(got.manifest.Layers) {
		for i, l := range want.manifest.Layers {
			d.add(fmt.Sprintf("layer %d media type", i), l.MediaType, got.manifest.Layers[i].MediaType)
		}
	}
	w, g := flatten(want.config, how), flatten(got.config, how)
	for _, k := range keys(w, g) {
		d.add(k, w[k], g[k])
	}
	compareTrees(d, want.tree, got.tree, how)
	d.add("attestations", strings.Join(want.bills, "\n"), strings.Join(got.bills, "\n"))
	return d.lines
}

// differences collects lines of the form "what: buildkit A, kiln B".
type differences struct{ lines []string }

func (d *differences) add(what, want, got string) {
	if want != got {
		d.lines = append(d.lines, fmt.Sprintf("%s: buildkit %s, kiln %s", what, orNothing(want), orNothing(got)))
	}
}

func orNothing(s string) string {
	if s == "" {
		return "has none"
	}
	return s
}

// keys gives the keys of two maps, sorted.
func keys[V any](a, b map[string]V) []string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}

// flatten gives an image config as lines of "config.Env" and its JSON. Times are
// left out unless they are asked for, and of rootfs the count is looked at alone:
// digests cover times.
func flatten(config map[string]any, how comparison) map[string]string {
	out := map[string]string{}
	for k, v := range config {
		switch k {
		case "created":
			if how.times {
				out[k] = toJSON(v)
			}
		case "rootfs":
			ids, _ := v.(map[string]any)["diff_ids"].([]any)
			out["rootfs.diff_ids"] = fmt.Sprint(len(ids))
		case "history":
			steps, _ := v.([]any)
			for i, s := range steps {
				step, _ := s.(map[string]any)
				for name, value := range step {
					if name != "created" || how.times {
						out[fmt.Sprintf("history %02d %s", i, name)] = toJSON(value)
					}
				}
			}
		case "config":
			fields, _ := v.(map[string]any)
			for name, value := range fields {
				out["config."+name] = toJSON(value)
			}
		default:
			out[k] = toJSON(v)
		}
	}
	return out
}

func toJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	if s := string(data); s != "null" && s != "{}" {
		return s
	}
	return ""
}

func compareTrees(d *differences, want, got map[string]*entry, how comparison) {
	wantLinks, gotLinks := hardLinks(want), hardLinks(got)
	for _, p := range keys(want, got) {
		w, g := want[p], got[p]
		switch {
		case g == nil && p == "/", w == nil && p == "/":
			// An absent entry of the root stands for the usual one.
			continue
		case g == nil:
			d.lines = append(d.lines, fmt.Sprintf("tree %s: only in buildkit's (%s)", p, w.kind))
			continue
		case w == nil:
			d.lines = append(d.lines, fmt.Sprintf("tree %s: only in kiln's (%s)", p, g.kind))
			continue
		}
		at := "tree " + p + ": "
		d.add(at+"kind", w.kind, g.kind)
		d.add(at+"mode", fmt.Sprintf("%04o", w.mode), fmt.Sprintf("%04o", g.mode))
		d.add(at+"owner", fmt.Sprintf("%d:%d", w.uid, w.gid), fmt.Sprintf("%d:%d", g.uid, g.gid))
		d.add(at+"link target", w.link, g.link)
		d.add(at+"device", fmt.Sprintf("%d:%d", w.major, w.minor), fmt.Sprintf("%d:%d", g.major, g.minor))
		d.add(at+"xattrs", toJSON(w.xattrs), toJSON(g.xattrs))
		d.add(at+"content", fmt.Sprintf("%d bytes %.12s", w.size, w.content), fmt.Sprintf("%d bytes %.12s", g.size, g.content))
		d.add(at+"hard links", wantLinks[w], gotLinks[g])
		if how.times {
			d.add(at+"mtime", w.mtime.UTC().Format(time.RFC3339), g.mtime.UTC().Format(time.RFC3339))
		}
	}
}

// hardLinks gives the names of each inode that has several.
func hardLinks(tree map[string]*entry) map[*entry]string {
	names := map[*entry][]string{}
	for p, e := range tree {
		names[e] = append(names[e], p)
	}
	out := map[*entry]string{}
	for e, n := range names {
		if len(n) > 1 {
			sort.Strings(n)
			out[e] = strings.Join(n, " ")
		}
	}
	return out
}

// compareAnswers gives the first line in which two texts differ.
func compareAnswers(want, got string) []string {
	w, g := strings.Split(strings.TrimSpace(want), "\n"), strings.Split(strings.TrimSpace(got), "\n")
	d := &differences{}
	for i := range max(len(w), len(g)) {
		var a, b string
		if i < len(w) {
			a = strings.TrimRight(w[i], " ")
		}
		if i < len(g) {
			b = strings.TrimRight(g[i], " ")
		}
		if d.add(fmt.Sprintf("answer, line %d", i+1), a, b); len(d.lines) > 0 {
			break
		}
	}
	return d.lines
}
