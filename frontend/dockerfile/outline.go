package dockerfile

import (
	"maps"
	"slices"
	"sort"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/solver/pb"
)

// outline is what a stage can be told from outside: arguments, secrets, agents.
type outline struct {
	args    map[string]argInfo // those that the stage declares, or its base
	used    map[string]struct{}
	secrets map[string]givenInfo
	agents  map[string]givenInfo
}

// argInfo is an ARG.
type argInfo struct {
	key, value, comment string
	uses                map[string]struct{} // arguments that its default mentions
	location            []parser.Range
}

// givenInfo is a secret or an agent that a step mounts.
type givenInfo struct {
	required bool
	location []parser.Range
}

func (o *outline) inherit(base *outline) {
	o.use(base.used)
	for _, a := range base.args {
		o.define(a)
	}
	for id, s := range base.secrets {
		o.addSecret(id, s.required, s.location)
	}
	for id, s := range base.agents {
		o.addSSH(id, s.required, s.location)
	}
}

func (o *outline) use(keys map[string]struct{}) {
	if o.used == nil {
		o.used = map[string]struct{}{}
	}
	maps.Copy(o.used, keys)
}

func (o *outline) useKey(key string) { o.use(map[string]struct{}{key: {}}) }

func (o *outline) define(a argInfo) {
	if o.args == nil {
		o.args = map[string]argInfo{}
	}
	o.args[a.key] = a
}

func (o *outline) addSecret(id string, required bool, at []parser.Range) {
	addGiven(&o.secrets, id, required, at)
}

func (o *outline) addSSH(id string, required bool, at []parser.Range) {
	addGiven(&o.agents, id, required, at)
}

// addGiven notes the first mount of an id.
func addGiven(m *map[string]givenInfo, id string, required bool, at []parser.Range) {
	if *m == nil {
		*m = map[string]givenInfo{}
	}
	if _, ok := (*m)[id]; !ok {
		(*m)[id] = givenInfo{required, at}
	}
}

// The outline as clients read it, in BuildKit's form.
type outlineDoc struct {
	Name        string       `json:"name,omitempty"`
	Description string       `json:"description,omitempty"`
	Args        []outlineArg `json:"args,omitempty"`
	Secrets     []givenDoc   `json:"secrets,omitempty"`
	SSH         []givenDoc   `json:"ssh,omitempty"`
	Sources     [][]byte     `json:"sources,omitempty"`
}

type outlineArg struct {
	Name        string       `json:"name"`
	Description string       `json:"description,omitempty"`
	Value       string       `json:"value,omitempty"`
	Location    *pb.Location `json:"location,omitempty"`
}

type givenDoc struct {
	Name     string       `json:"name"`
	Required bool         `json:"required,omitempty"`
	Location *pb.Location `json:"location,omitempty"`
}

// outlineOf gathers what the target and the stages that it needs can be told.
func (c *compiler) outlineOf(target *stage) outlineDoc {
	args := map[string]argInfo{}
	secrets := map[string]givenInfo{}
	agents := map[string]givenInfo{}
	for _, s := range nearestFirst(target) {
		for key := range c.usedArgs(s) {
			info, ok := s.outline.args[key]
			if !ok {
				info, ok = c.globals.infos[key]
			}
			if _, have := args[key]; ok && !have {
				args[key] = info
			}
		}
		for id, g := range s.outline.secrets {
			addGiven(&secrets, id, g.required, g.location)
		}
		for id, g := range s.outline.agents {
			addGiven(&agents, id, g.required, g.location)
		}
	}
	doc := outlineDoc{
		Name:        target.name,
		Description: target.comment,
		Secrets:     givenDocs(secrets),
		SSH:         givenDocs(agents),
		Sources:     [][]byte{c.file.Data},
	}
	for _, key := range slices.Sorted(maps.Keys(args)) {
		a := args[key]
		doc.Args = append(doc.Args, outlineArg{Name: a.key, Value: a.value, Description: a.comment, Location: locationPB(a.location)})
	}
	sort.SliceStable(doc.Args, func(i, j int) bool { return before(doc.Args[i].Location, doc.Args[j].Location) })
	return doc
}

// usedArgs gives the arguments that a stage uses, with those that their defaults use.
func (c *compiler) usedArgs(s *stage) map[string]struct{} {
	out := map[string]struct{}{}
	todo := slices.Collect(maps.Keys(s.outline.used))
	for len(todo) > 0 {
		key := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if _, ok := out[key]; ok {
			continue
		}
		out[key] = struct{}{}
		todo = slices.AppendSeq(todo, maps.Keys(c.globals.infos[key].uses))
	}
	return out
}

// nearestFirst lists a stage and what it needs, what it is made of most directly first.
func nearestFirst(target *stage) []*stage {
	seen := map[*stage]bool{}
	var out []*stage
	todo := []*stage{target}
	for len(todo) > 0 {
		s := todo[0]
		todo = todo[1:]
		if s == nil || seen[s] {
			continue
		}
		seen[s] = true
		out = append(out, s)
		todo = append(todo, s.base)
		for _, n := range s.needs {
			todo = append(todo, n.stage)
		}
	}
	return out
}

func givenDocs(m map[string]givenInfo) []givenDoc {
	var out []givenDoc
	for _, id := range slices.Sorted(maps.Keys(m)) {
		out = append(out, givenDoc{Name: id, Required: m[id].required, Location: locationPB(m[id].location)})
	}
	sort.SliceStable(out, func(i, j int) bool { return before(out[i].Location, out[j].Location) })
	return out
}

func before(a, b *pb.Location) bool { return firstLine(a) < firstLine(b) }

func firstLine(l *pb.Location) int32 {
	if r := l.GetRanges(); len(r) > 0 {
		return r[0].GetStart().GetLine()
	}
	return 0
}

func locationPB(ranges []parser.Range) *pb.Location {
	if len(ranges) == 0 {
		return nil
	}
	l := &pb.Location{}
	for _, r := range ranges {
		l.Ranges = append(l.Ranges, &pb.Range{
			Start: &pb.Position{Line: int32(r.Start.Line), Character: int32(r.Start.Character)},
			End:   &pb.Position{Line: int32(r.End.Line), Character: int32(r.End.Character)},
		})
	}
	return l
}
