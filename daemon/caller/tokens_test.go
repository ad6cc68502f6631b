package caller

import (
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/registry"
)

// TestTokensAreBounded has clients and registries choose how much there is to hold.
func TestTokensAreBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	tokens := NewTokens(func() time.Time { return now })
	token := func(n int) registry.Token {
		return registry.Token{Value: strings.Repeat("x", n), Expires: now.Add(time.Minute)}
	}
	key := func(scopes string) tokenKey { return tokenKey{authority: "a", host: "h", scopes: scopes} }
	check := func(what string, k tokenKey, want bool) {
		t.Helper()
		if _, ok := tokens.get(k); ok != want {
			t.Errorf("%s: held is %v, want %v", what, ok, want)
		}
		held := 0
		for k, token := range tokens.held {
			held += k.size(token)
		}
		if held != tokens.size || held > maxTokens {
			t.Errorf("%s: %d bytes are held and %d counted, want %d at most", what, held, tokens.size, maxTokens)
		}
	}
	tokens.put(key("one"), token(100))
	tokens.put(key("one"), token(200))
	check("one put again", key("one"), true)
	tokens.put(key("huge"), token(maxTokens))
	check("a huge one", key("huge"), false)
	tokens.put(key(strings.Repeat("s", maxTokens)), token(1))
	check("one for huge scopes", key(strings.Repeat("s", maxTokens)), false)
	check("the one beside them", key("one"), true)
	for i := range 10 {
		k := key(strings.Repeat("s", i))
		tokens.put(k, token(maxTokens/4))
		check("one of many", k, true)
	}
	now = now.Add(time.Hour)
	check("one that has ended", key(strings.Repeat("s", 9)), false)
}
