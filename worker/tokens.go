package worker

import (
	"context"

	"github.com/kiln-build/kiln/registry"
)

var _ registry.TokenFetcher = credentials(nil)

// Token has the first session fetch a token that does so, and makes credentials a
// registry.TokenFetcher.
func (c credentials) Token(ctx context.Context, r registry.TokenRequest) (t registry.Token, ok bool, err error) {
	for _, s := range c {
		f, fetches := s.Credentials.(registry.TokenFetcher)
		if !fetches {
			continue
		}
		if t, ok, err = f.Token(ctx, r); err == nil && ok {
			return t, true, nil
		}
	}
	return registry.Token{}, false, err
}
