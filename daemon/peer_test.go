package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"testing"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

func TestUser(t *testing.T) {
	of := func(subject string, verified bool) credentials.AuthInfo {
		cert := &x509.Certificate{RawSubject: []byte(subject), RawIssuer: []byte("ca")}
		state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		if verified {
			state.VerifiedChains = [][]*x509.Certificate{{cert}}
		}
		return credentials.TLSInfo{State: state}
	}
	users := map[string]bool{}
	for _, info := range []credentials.AuthInfo{nearPeer{}, of("a", true), of("b", true)} {
		users[user(peer.NewContext(t.Context(), &peer.Peer{AuthInfo: info}))] = true
	}
	if len(users) != 3 || users[""] {
		t.Errorf("three users have the names %v", users)
	}
	for _, info := range []credentials.AuthInfo{nil, of("a", false), credentials.TLSInfo{}} {
		if got := user(peer.NewContext(t.Context(), &peer.Peer{AuthInfo: info})); got != "" {
			t.Errorf("%T that proves nothing is the user %q", info, got)
		}
	}
	if got := user(t.Context()); got != "" {
		t.Errorf("a call of nobody is of the user %q", got)
	}
}
