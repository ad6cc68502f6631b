package kiln

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/kiln-build/kiln/cache/remote"
)

// cacheKeys are the keys that the configuration has for remote caches.
type cacheKeys struct {
	verify []ed25519.PublicKey // none takes all
	sign   ed25519.PrivateKey  // nil signs nothing
}

// Check says what is wrong with the configuration's keys.
func (c CacheConfig) Check() error {
	_, err := c.keys()
	return err
}

// keys reads the files of the configuration's keys.
func (c CacheConfig) keys() (k cacheKeys, err error) {
	for _, file := range c.Verify {
		public, err := remote.ReadPublicKey(file)
		if err != nil {
			return k, fmt.Errorf("cache.verify: %w", err)
		}
		k.verify = append(k.verify, public)
	}
	if c.Sign == "" {
		return k, nil
	}
	if len(k.verify) == 0 {
		return k, errors.New("cache.sign needs cache.verify: what unsigned caches claim would be signed as results of this machine")
	}
	if k.sign, err = remote.ReadPrivateKey(c.Sign); err != nil {
		return k, fmt.Errorf("cache.sign: %w", err)
	}
	return k, nil
}

// verifyKeys gives the keys one of which has to have signed what is taken from a
// cache: that of its attribute, which can choose among the configuration's.
func (b *build) verifyKeys(a attrs, who namer) ([]ed25519.PublicKey, error) {
	configured, err := b.engine.cacheKeys()
	if err != nil {
		return nil, fmt.Errorf("the configuration, %w", err)
	}
	text := a.take("verify")
	if text == "" {
		return configured.verify, nil
	}
	key, written, err := remote.PublicKeyText(text)
	if !written && err == nil {
		if err = who.mayName(text, "give the line of the public key's file in place of its name"); err == nil {
			key, err = remote.ReadPublicKey(text)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	if len(configured.verify) > 0 && !slices.ContainsFunc(configured.verify, func(k ed25519.PublicKey) bool { return k.Equal(key) }) {
		return nil, errors.New("verify: the key is none of those that the configuration's cache.verify names")
	}
	return []ed25519.PublicKey{key}, nil
}

// signKey gives the key that an export is signed with; nil signs nothing.
func (b *build) signKey(a attrs, who namer, inline bool) (ed25519.PrivateKey, error) {
	file := a.take("sign")
	if inline {
		if file != "" {
			return nil, errors.New("sign: an inline cache has no signatures")
		}
		return nil, nil
	}
	if file == "" {
		configured, err := b.engine.cacheKeys()
		if err != nil {
			return nil, fmt.Errorf("the configuration, %w", err)
		}
		return configured.sign, nil
	}
	err := who.mayName(file, "the daemon's configuration can name one for all (cache.sign)")
	if err == nil {
		var key ed25519.PrivateKey
		if key, err = remote.ReadPrivateKey(file); err == nil {
			return key, nil
		}
	}
	return nil, fmt.Errorf("sign: %w", err)
}

// mayName says whether who names a cache may name the file of a key, and what to do
// where not.
func (n namer) mayName(file, instead string) error {
	switch {
	case !n.keys:
		return errors.New("a key's file can be named only by who runs on the daemon's machine as its user; " + instead)
	case !n.here && !filepath.IsAbs(file):
		return fmt.Errorf("%s: a daemon wants the whole path of a key's file", file)
	}
	return nil
}
