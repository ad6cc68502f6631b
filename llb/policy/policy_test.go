package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
)

func allow(id string) *spb.Rule {
	return &spb.Rule{Action: spb.PolicyAction_ALLOW, Selector: &spb.Selector{Identifier: id}}
}

func deny(id string) *spb.Rule {
	return &spb.Rule{Action: spb.PolicyAction_DENY, Selector: &spb.Selector{Identifier: id}}
}

func convert(kind spb.MatchType, from, to string, attrs map[string]string) *spb.Rule {
	return &spb.Rule{
		Action:   spb.PolicyAction_CONVERT,
		Selector: &spb.Selector{Identifier: from, MatchType: kind},
		Updates:  &spb.Update{Identifier: to, Attrs: attrs},
	}
}

const alpine = "docker-image://docker.io/library/alpine:3"

func TestApply(t *testing.T) {
	exact, regex, wild := spb.MatchType_EXACT, spb.MatchType_REGEX, spb.MatchType_WILDCARD
	constrained := func(c spb.AttrMatch, value string) *spb.Rule {
		r := deny(alpine)
		r.Selector.Constraints = []*spb.AttrConstraint{{Key: "k", Value: value, Condition: c}}
		return r
	}
	for _, row := range []struct {
		name    string
		rules   []*spb.Rule
		want    string // the identifier; empty is denied
		attrs   string // of the attribute k, which is "v" before
		message string // of an error other than denial
	}{
		{"no rule matches", []*spb.Rule{deny("https://*")}, alpine, "v", ""},
		{"the last rule of two counts", []*spb.Rule{deny("*"), allow(alpine)}, alpine, "v", ""},
		{"and the other way round", []*spb.Rule{allow(alpine), deny("*")}, "", "", ""},
		{"a wildcard's parts go into the new name", []*spb.Rule{convert(wild, "docker-image://docker.io/*:*", "docker-image://mirror/$1:${2}-x", nil)}, "docker-image://mirror/library/alpine:3-x", "v", ""},
		{"a regular expression's too", []*spb.Rule{convert(regex, `^docker-image://docker\.io/(.*)$`, "docker-image://m/$1", nil)}, "docker-image://m/library/alpine:3", "v", ""},
		{"stars are no patterns where a name is exact", []*spb.Rule{convert(exact, "docker-image://*", "x://y", nil)}, alpine, "v", ""},
		{"attributes alone", []*spb.Rule{convert(exact, alpine, "", map[string]string{"k": "w"})}, alpine, "w", ""},
		{"what came out is held against the rules again", []*spb.Rule{convert(exact, alpine, "https://h/f", nil), deny("https://*")}, "", "", ""},
		{"circles end", []*spb.Rule{convert(exact, alpine, "a://b", nil), convert(exact, "a://b", alpine, nil)}, "", "", "too many mutations"},
		{"a rule that converts to nothing", []*spb.Rule{{Action: spb.PolicyAction_CONVERT, Selector: &spb.Selector{Identifier: alpine}}}, "", "", "missing destination"},
		{"an action that is none", []*spb.Rule{{Action: 9, Selector: &spb.Selector{Identifier: alpine}}}, "", "", "unknown type"},
		{"an attribute that is equal", []*spb.Rule{constrained(spb.AttrMatch_EQUAL, "v")}, "", "", ""},
		{"one that is not", []*spb.Rule{constrained(spb.AttrMatch_EQUAL, "w")}, alpine, "v", ""},
		{"one that should not be equal", []*spb.Rule{constrained(spb.AttrMatch_NOTEQUAL, "v")}, alpine, "v", ""},
		{"one that matches", []*spb.Rule{constrained(spb.AttrMatch_MATCHES, "^v")}, "", "", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			s, err := New(&spb.Policy{Rules: row.rules})
			if err != nil {
				t.Fatal(err)
			}
			op := &pb.SourceOp{Identifier: alpine, Attrs: map[string]string{"k": "v"}}
			changed, err := s.Apply(op)
			switch {
			case row.message != "":
				if err == nil || !strings.Contains(err.Error(), row.message) {
					t.Errorf("got the error %v, want %q", err, row.message)
				}
			case row.want == "":
				if !errors.Is(err, ErrDenied) {
					t.Errorf("got %v, want a denial", err)
				}
			case err != nil || op.Identifier != row.want || op.Attrs["k"] != row.attrs:
				t.Errorf("got %s, %v, %v; want %s, %s", op.Identifier, op.Attrs, err, row.want, row.attrs)
			case changed != (row.want != alpine || row.attrs != "v"):
				t.Errorf("it says that something changed: %v", changed)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	selected := func(s *spb.Selector) *spb.Policy { return &spb.Policy{Rules: []*spb.Rule{{Selector: s}}} }
	for _, row := range []struct {
		policy *spb.Policy
		want   string
	}{
		{nil, "nil policy"},
		{&spb.Policy{Rules: []*spb.Rule{nil}}, "nil rule"},
		{selected(nil), "nil selector"},
		{selected(&spb.Selector{Identifier: "(", MatchType: spb.MatchType_REGEX}), "pattern"},
		{selected(&spb.Selector{Identifier: "a**"}), "wildcard"},
		{selected(&spb.Selector{MatchType: 9}), "match type"},
		{selected(&spb.Selector{Constraints: []*spb.AttrConstraint{nil}}), "nil constraint"},
		{selected(&spb.Selector{Constraints: []*spb.AttrConstraint{{Condition: 9}}}), "condition"},
		{selected(&spb.Selector{Constraints: []*spb.AttrConstraint{{Condition: spb.AttrMatch_MATCHES, Value: "("}}}), "pattern"},
	} {
		if _, err := New(row.policy); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("got the error %v, want one about %q", err, row.want)
		}
	}
}

// FuzzApply looks for patterns that make a policy panic, or go on for ever.
func FuzzApply(f *testing.F) {
	f.Add("docker-image://*", "$1", uint8(0), alpine)
	f.Add("(a|b)*", "${1}x$0", uint8(2), "ab")
	f.Fuzz(func(t *testing.T, from, to string, kind uint8, id string) {
		s, err := New(&spb.Policy{Rules: []*spb.Rule{convert(spb.MatchType(kind%4), from, to, map[string]string{"k": "v"})}})
		if err != nil {
			return
		}
		op := &pb.SourceOp{Identifier: id}
		if changed, err := s.Apply(op); err == nil && !changed && op.Identifier != id {
			t.Errorf("%q became %q, and that was not told", id, op.Identifier)
		}
	})
}
