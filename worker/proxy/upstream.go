package proxy

import (
	"fmt"
	"net/url"
	"os"
	"strings"
)

// checkUpstream refuses a builder's environment whose proxies make no sense: requests
// that were to go through one must not go straight to the host. What the variables
// hold may be secret and is not shown.
func checkUpstream() error {
	for _, names := range [][2]string{{"HTTP_PROXY", "http_proxy"}, {"HTTPS_PROXY", "https_proxy"}} {
		for _, name := range names {
			value := os.Getenv(name)
			if value == "" {
				continue
			}
			if !isProxy(value) {
				return fmt.Errorf("the environment variable %s of the builder names no proxy", name)
			}
			break
		}
	}
	return nil
}

// isProxy reports whether value names a proxy, as Go's client reads it.
func isProxy(value string) bool {
	if !strings.Contains(value, "://") {
		value = "http://" + value
	}
	u, err := url.Parse(value)
	if err != nil || u.Hostname() == "" {
		return false
	}
	switch u.Scheme {
	case "http", "https", "socks5", "socks5h":
		return true
	}
	return false
}
