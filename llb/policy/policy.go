// Package policy holds a build to source policies: rules, in BuildKit's form, that
// say which sources a build may read, and which others take their place.
//
// A rule has a selector, which a source's identifier and attributes match or not,
// and an action: to allow, to deny, or to convert, which is to replace the
// identifier, set attributes, or both. Of the rules of one policy that allow and
// deny, the last one that matches counts; one that converts counts at once, and the
// source that comes out is held against all of them again. A Set is policies that
// hold together; it is safe for concurrent use.
package policy

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
)

// ErrDenied is what the error of a source wraps that a policy denies.
var ErrDenied = errors.New("source denied by policy")

// maxConversions bounds how often one source is converted: rules may go in circles.
const maxConversions = 20

// maxIdentifier bounds what a conversion makes: a template may double what it is given.
const maxIdentifier = 64 << 10

// Set is policies that hold together. The nil Set lets everything be.
type Set struct{ policies [][]rule }

// rule is a rule whose patterns are compiled.
type rule struct {
	*spb.Rule
	pattern     *regexp.Regexp   // nil where the identifier is to be equal
	constraints []*regexp.Regexp // nil where it is no pattern; one for each of the selector's
}

// New reads policies. Nil ones are an error, since whoever sends one meant something.
func New(policies ...*spb.Policy) (*Set, error) {
	s := &Set{}
	for _, p := range policies {
		if p == nil {
			return nil, errors.New("invalid nil policy")
		}
		var rules []rule
		for _, r := range p.Rules {
			compiled, err := compile(r)
			if err != nil {
				return nil, err
			}
			rules = append(rules, compiled)
		}
		if len(rules) > 0 {
			s.policies = append(s.policies, rules)
		}
	}
	return s, nil
}

func compile(r *spb.Rule) (rule, error) {
	c := rule{Rule: r}
	switch {
	case r == nil:
		return c, errors.New("invalid nil rule in policy")
	case r.Selector == nil:
		return c, errors.New("invalid nil selector in policy")
	}
	var err error
	switch id := r.Selector.Identifier; r.Selector.MatchType {
	case spb.MatchType_EXACT:
	case spb.MatchType_REGEX:
		c.pattern, err = regexp.Compile(id)
	case spb.MatchType_WILDCARD:
		if strings.Contains(id, "**") {
			return c, fmt.Errorf("invalid wildcard in policy: %q has ** in it", id)
		}
		c.pattern, err = regexp.Compile("^" + strings.ReplaceAll(regexp.QuoteMeta(id), `\*`, "(.*)") + "$")
	default:
		return c, fmt.Errorf("unknown match type in policy: %s", r.Selector.MatchType)
	}
	if err != nil {
		return c, fmt.Errorf("invalid pattern in policy: %w", err)
	}
	for _, k := range r.Selector.Constraints {
		var pattern *regexp.Regexp
		switch {
		case k == nil:
			return c, errors.New("invalid nil constraint in policy")
		case k.Condition == spb.AttrMatch_MATCHES:
			if pattern, err = regexp.Compile(k.Value); err != nil {
				return c, fmt.Errorf("invalid pattern in policy: %w", err)
			}
		case k.Condition != spb.AttrMatch_EQUAL && k.Condition != spb.AttrMatch_NOTEQUAL:
			return c, fmt.Errorf("unknown attr condition in policy: %s", k.Condition)
		}
		c.constraints = append(c.constraints, pattern)
	}
	return c, nil
}

// Empty reports whether the set has no rules.
func (s *Set) Empty() bool { return s == nil || len(s.policies) == 0 }

// Apply holds op against the policies. It changes op where they convert it, and
// reports whether it did; an error wraps ErrDenied where they deny it.
func (s *Set) Apply(op *pb.SourceOp) (changed bool, err error) {
	if s.Empty() {
		return false, nil
	}
	for range maxConversions + 1 {
		converted, err := s.once(op)
		changed = changed || converted
		if err != nil || !converted {
			return changed, err
		}
	}
	return changed, fmt.Errorf("source %q: too many mutations on a single source: its policies go in circles", op.Identifier)
}

func (s *Set) once(op *pb.SourceOp) (converted bool, err error) {
	for _, rules := range s.policies {
		denied := false
		for _, r := range rules {
			if !r.matches(op) {
				continue
			}
			switch r.Action {
			case spb.PolicyAction_ALLOW:
				denied = false
			case spb.PolicyAction_DENY:
				denied = true
			case spb.PolicyAction_CONVERT:
				converted, err := r.convert(op)
				if converted || err != nil {
					return converted, err
				}
			default:
				return false, fmt.Errorf("source policy: rule %s of %s: unknown type %q", r.Action, r.Selector.Identifier, op.Identifier)
			}
		}
		if denied {
			return false, fmt.Errorf("source %q denied by policy: %w", op.Identifier, ErrDenied)
		}
	}
	return false, nil
}

// matches reports whether the selector is one of op.
func (r rule) matches(op *pb.SourceOp) bool {
	for i, k := range r.Selector.Constraints {
		v := op.Attrs[k.Key]
		switch {
		case r.constraints[i] != nil && !r.constraints[i].MatchString(v),
			k.Condition == spb.AttrMatch_EQUAL && v != k.Value,
			k.Condition == spb.AttrMatch_NOTEQUAL && v == k.Value:
			return false
		}
	}
	return op.Identifier == r.Selector.Identifier || r.pattern != nil && r.pattern.MatchString(op.Identifier)
}

// convert makes op what the rule says, and reports whether that is something else.
func (r rule) convert(op *pb.SourceOp) (bool, error) {
	if r.Updates == nil {
		return false, errors.New("source policy: missing destination for convert rule")
	}
	to := r.Updates.Identifier
	if to == "" {
		to = r.Selector.Identifier
	}
	if r.pattern != nil {
		if to = r.replace(op.Identifier, to); to == "" {
			to = op.Identifier
		}
	}
	if len(to) > maxIdentifier {
		return false, fmt.Errorf("source policy: a rule makes an identifier of %d bytes of %.100q", len(to), op.Identifier)
	}
	changed := to != op.Identifier
	op.Identifier = to
	for k, v := range r.Updates.Attrs {
		if was, ok := op.Attrs[k]; !ok || was != v {
			if op.Attrs == nil {
				op.Attrs = map[string]string{}
			}
			op.Attrs[k] = v
			changed = true
		}
	}
	return changed, nil
}

// replace puts what the pattern's groups matched into a template: "$1", "${name}".
func (r rule) replace(id, template string) string {
	if r.Selector.MatchType == spb.MatchType_REGEX {
		return r.pattern.ReplaceAllString(id, template)
	}
	at := r.pattern.FindStringSubmatchIndex(id)
	if at == nil {
		return id // the identifier is the selector's own, star for star
	}
	return string(r.pattern.ExpandString(nil, template, id, at))
}
