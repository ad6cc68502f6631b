package registry

import "strings"

// challenge is what a server wants to see: a line of WWW-Authenticate.
type challenge struct {
	scheme string // in lower case: "basic", "bearer"
	params map[string]string
}

// maxChallenge bounds how much of a challenge is read.
const maxChallenge = 16 << 10

// pick gives the challenge that can be answered best: a token before a password,
// which a server that takes both need not be shown.
func pick(headers []string) (challenge, bool) {
	var basic challenge
	for _, h := range headers {
		switch c := parseChallenge(h); c.scheme {
		case schemeBearer:
			return c, true
		case schemeBasic:
			basic = c
		}
	}
	return basic, basic.scheme != ""
}

// parseChallenge reads a line of the form: scheme name="value", name=value. What
// comes after a mistake is left out.
func parseChallenge(h string) challenge {
	if len(h) > maxChallenge {
		return challenge{}
	}
	scheme, rest, _ := strings.Cut(strings.TrimSpace(h), " ")
	c := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
	for {
		rest = strings.TrimLeft(rest, " \t,")
		name, value, ok := strings.Cut(rest, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		if !ok || name == "" || strings.ContainsAny(name, " \t,\"") {
			return c
		}
		value = strings.TrimLeft(value, " \t")
		if c.params[name], rest, ok = cutValue(value); !ok {
			delete(c.params, name)
			return c
		}
	}
}

// cutValue cuts a value, quoted or not, from what follows it.
func cutValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, " \t,")
		if i < 0 {
			i = len(s)
		}
		return s[:i], s[i:], true
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}
