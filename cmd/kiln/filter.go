package main

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/kiln-build/kiln/request"
)

const filterHelp = `Filters are FIELD=VALUE, FIELD!=VALUE or FIELD~=REGEXP; the fields are id (a prefix
is enough), type (regular, internal, source.local, exec.cachemount, source.git.checkout),
description, parents, and inuse, shared, private, mutable and immutable, which are true
or false, and alone mean true. until=24h holds for what was last used before that.
Several filters must all hold; values with commas stand in quotes, "a,b" or /a,b/.`

var filterForm = regexp.MustCompile(`^([a-z-]+)(?:(==|~=|!=|=)(.*))?$`)

// parseFilters gives what all the filters hold for.
func parseFilters(words []string) (func(request.Usage) bool, error) {
	var all []func(request.Usage) bool
	for _, list := range words {
		for _, w := range splitFilters(list) {
			f, err := parseFilter(w)
			if err != nil {
				return nil, err
			}
			all = append(all, f)
		}
	}
	return func(u request.Usage) bool {
		for _, f := range all {
			if !f(u) {
				return false
			}
		}
		return true
	}, nil
}

// filterQuotes stand around values that hold commas, as in containerd's filters.
const filterQuotes = "\"/|"

// splitFilters splits filters at commas that are in no quoted value.
func splitFilters(list string) []string {
	var out []string
	begin, quote, before := 0, byte(0), byte(0)
	for i := range len(list) {
		c := list[i]
		switch {
		case quote != 0:
			if c == quote && (i+1 == len(list) || list[i+1] == ',') {
				quote = 0
			}
		case before == '=' && strings.IndexByte(filterQuotes, c) >= 0 && closes(list[i+1:], c):
			quote = c
		case c == ',':
			out = append(out, list[begin:i])
			begin = i + 1
		}
		before = c
	}
	return append(out, list[begin:])
}

// closes reports whether a quoted value ends somewhere in a text.
func closes(text string, quote byte) bool {
	return strings.HasSuffix(text, string(quote)) || strings.Contains(text, string(quote)+",")
}

// unquote takes the quotes off a value.
func unquote(value string) string {
	if n := len(value); n > 1 && value[0] == value[n-1] && strings.IndexByte(filterQuotes, value[0]) >= 0 {
		return value[1 : n-1]
	}
	return value
}

func parseFilter(w string) (func(request.Usage) bool, error) {
	m := filterForm.FindStringSubmatch(w)
	if m == nil {
		return nil, usagef("--filter %q: want FIELD=VALUE, FIELD!=VALUE or FIELD~=REGEXP", w)
	}
	field, op, value := m[1], m[2], unquote(m[3])
	if field == "until" || field == "unused-for" {
		d, err := time.ParseDuration(value)
		if err != nil {
			return nil, usagef("--filter %q: %v", w, err)
		}
		return func(u request.Usage) bool { return time.Since(u.LastUsed) > d }, nil
	}
	if op == "" {
		op, value = "=", "true"
	}
	get, ok := filterFields[field]
	if !ok {
		return nil, usagef("--filter %q: there is no field %q; the fields are %s and until", w, field, strings.Join(sortedKeys(filterFields), ", "))
	}
	switch op {
	case "~=":
		re, err := regexp.Compile(value)
		if err != nil {
			return nil, usagef("--filter %q: %v", w, err)
		}
		return func(u request.Usage) bool { return re.MatchString(get(u)) }, nil
	case "!=":
		return func(u request.Usage) bool { return get(u) != value }, nil
	}
	if field == "id" {
		return func(u request.Usage) bool { return strings.HasPrefix(u.ID, value) }, nil
	}
	return func(u request.Usage) bool { return get(u) == value }, nil
}

var filterFields = map[string]func(request.Usage) string{
	"id":          func(u request.Usage) string { return u.ID },
	"type":        func(u request.Usage) string { return u.Kind },
	"description": func(u request.Usage) string { return u.Description },
	"parents":     func(u request.Usage) string { return strings.Join(u.Parents, ";") },
	"inuse":       func(u request.Usage) string { return strconv.FormatBool(u.InUse) },
	"shared":      func(u request.Usage) string { return strconv.FormatBool(u.Shared) },
	"private":     func(u request.Usage) string { return strconv.FormatBool(!u.Shared) },
	"mutable":     func(u request.Usage) string { return strconv.FormatBool(u.Mutable()) },
	"immutable":   func(u request.Usage) string { return strconv.FormatBool(!u.Mutable()) },
}
