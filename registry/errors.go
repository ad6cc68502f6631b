package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
)

// What an error of this package wraps, for those who branch on it.
var (
	// ErrNotFound: the registry answered, and does not have the thing.
	ErrNotFound = errors.New("not found")
	// ErrDenied: the registry wants a login, or another one.
	ErrDenied = errors.New("access denied")
	// ErrDown: nothing answered, or with errors of its own, however often it was tried.
	ErrDown = errors.New("registry cannot be reached")
	// ErrCorrupt: what the registry sent is not what its digest or size says.
	ErrCorrupt = errors.New("wrong content")
)

// Error is a request that did not succeed.
type Error struct {
	Doing  string // "resolving docker.io/library/debian:latest"
	Host   string // the server that was asked
	Status int    // its answer; 0 where there was none
	Kind   error  // ErrNotFound, ErrDenied, ErrDown, ErrCorrupt, or nil
	Err    error  // what went wrong, and what to do about it
	// After is how long the server wants not to be asked, as far as that is waited for.
	After time.Duration
}

func (e *Error) Error() string { return e.Doing + ": " + e.Err.Error() }

// Unwrap gives what the error can be tested for.
func (e *Error) Unwrap() []error {
	if e.Kind == nil {
		return []error{e.Err}
	}
	return []error{e.Kind, e.Err}
}

// failed makes an error of a request that got no answer.
func failed(doing, host string, err error) error {
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	e := &Error{Doing: doing, Host: host, Kind: ErrDown}
	var token *tokenError
	var realm *realmError
	var cred *credentialError
	switch {
	case errors.As(err, &cred):
		e.Kind, e.Err = ErrDenied, err
	case errors.As(err, &token):
		// The server that hands out tokens said no; it is part of the registry.
		e.Status = token.status
		e.Kind, e.Err = explain(host, token.status, token.said, "the image")
	case errors.As(err, &realm):
		e.Kind, e.Err = ErrDenied, err
	case errors.Is(err, errNoLogin):
		e.Status = http.StatusUnauthorized
		e.Kind, e.Err = explain(host, http.StatusUnauthorized, "", "the image")
	case untrusted(err):
		e.Err = fmt.Errorf("the certificate of %s cannot be verified: %w (give its CA as ca = [\"FILE\"] in the table [registry.%q] of the registry configuration)", host, err, host)
	case notTLS(err):
		e.Err = fmt.Errorf("%s speaks plain HTTP, not TLS: %w (say http = true in the table [registry.%q] of the registry configuration)", host, err, host)
	default:
		e.Err = fmt.Errorf("the registry %s does not answer: %w (check that it runs, its name and port, and any proxy or firewall between)", host, err)
	}
	return e
}

// untrusted reports whether err is about a server's certificate.
func untrusted(err error) bool {
	var cert *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	return errors.As(err, &cert) || errors.As(err, &authority)
}

// answered makes an error of a response that is not what was hoped for. It reads
// what the registry says of it, and closes the body.
func answered(doing, host, what string, resp *http.Response) error {
	said := readErrors(resp)
	kind, err := explain(host, resp.StatusCode, said, what)
	if resp.StatusCode == http.StatusBadRequest && said == "" && resp.Request != nil && resp.Request.URL.Scheme == "http" {
		// Servers that speak TLS answer so, and not in the distribution API's form.
		err = fmt.Errorf("%w to plain HTTP; if it speaks TLS, say http = false in the table [registry.%q] of the registry configuration", err, host)
	}
	return &Error{Doing: doing, Host: host, Status: resp.StatusCode, Kind: kind, Err: err}
}

// explain says what a status means and what to do about it.
func explain(host string, status int, said, what string) (kind, err error) {
	answer := fmt.Sprintf("%d %s", status, http.StatusText(status))
	if said != "" {
		answer += ": " + said
	}
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return ErrDenied, fmt.Errorf("%s refuses access, or does not have it (%s); log in with: %s", host, answer, loginCommand(host))
	case status == http.StatusNotFound:
		return ErrNotFound, fmt.Errorf("%s does not have %s (%s)", host, what, answer)
	case status == http.StatusTooManyRequests:
		return ErrDown, fmt.Errorf("%s was asked too often (%s); wait, or raise the limit with: %s", host, answer, loginCommand(host))
	case status >= 500:
		return ErrDown, fmt.Errorf("the registry %s has an error of its own (%s)", host, answer)
	}
	return nil, fmt.Errorf("%s answered %s", host, answer)
}

func loginCommand(host string) string {
	if host == "registry-1.docker.io" {
		return "docker login"
	}
	return "docker login " + host
}

// corrupt makes an error of bytes that are not what they should be.
func corrupt(doing, host string, format string, args ...any) error {
	return &Error{Doing: doing, Host: host, Kind: ErrCorrupt, Err: fmt.Errorf(format, args...)}
}

// wrongDigest is the corrupt error of bytes with another digest.
func wrongDigest(doing, host string, got, want blob.Digest) error {
	return corrupt(doing, host, "%s sent bytes with the digest %s instead of %s", host, got, want)
}

// maxErrorBody bounds what is read of an answer that nobody wanted.
const maxErrorBody = 8 << 10

// readErrors gives the messages of the distribution API's error body, and closes it.
func readErrors(resp *http.Response) string {
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return ""
	}
	var body struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(data, &body) != nil {
		return ""
	}
	var said []string
	for _, e := range body.Errors {
		if e.Message == "" {
			e.Message = e.Code
		}
		said = append(said, strings.ToValidUTF8(e.Message, "?"))
	}
	return strings.Join(said, "; ")
}

// statusOf gives the status that an error came of, or 0.
func statusOf(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	return 0
}
