package dockerfile

import (
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// environment holds variables in the order in which they were last set, which is
// the order that a step's process gets them in. The zero value is empty.
type environment struct {
	keys   []string
	values map[string]string
}

var _ shell.EnvGetter = (*environment)(nil)

// Get is the value of a variable, and whether there is one.
func (e *environment) Get(key string) (string, bool) {
	v, ok := e.values[key]
	return v, ok
}

// Keys lists the variables. Callers must not change the list.
func (e *environment) Keys() []string { return e.keys }

// set gives a variable a value, and the last place.
func (e *environment) set(key, value string) {
	if e.values == nil {
		e.values = map[string]string{}
	}
	e.unset(key)
	e.keys = append(e.keys, key)
	e.values[key] = value
}

func (e *environment) unset(key string) {
	if _, ok := e.values[key]; !ok {
		return
	}
	delete(e.values, key)
	i := slices.Index(e.keys, key)
	e.keys = slices.Delete(e.keys, i, i+1)
}

// clone copies e, for a stage that goes on from where another ends.
func (e *environment) clone() *environment {
	c := &environment{keys: slices.Clone(e.keys), values: make(map[string]string, len(e.values))}
	for k, v := range e.values {
		c.values[k] = v
	}
	return c
}

// list gives the variables as "KEY=value".
func (e *environment) list() []string {
	out := make([]string, len(e.keys))
	for i, k := range e.keys {
		out[i] = k + "=" + e.values[k]
	}
	return out
}
