package daemon

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/kiln-build/kiln/request"
)

// peerCredentials find out who is at the other end of a connection: of a socket's the
// kernel says it, of a TLS listener's its certificate. They add no TLS of their own.
type peerCredentials struct {
	credentials.TransportCredentials
}

// ServerHandshake finds out who connected.
func (p peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := p.TransportCredentials.ServerHandshake(conn)
	if err != nil {
		return nil, nil, err
	}
	switch c := conn.(type) {
	case *net.UnixConn:
		if isNear(c) {
			return conn, nearPeer{info}, nil
		}
	case *tls.Conn:
		// Bounded by the deadline that the server has set.
		if err := c.Handshake(); err != nil {
			return nil, nil, err
		}
		common := credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
		return conn, credentials.TLSInfo{State: c.ConnectionState(), CommonAuthInfo: common}, nil
	}
	return conn, info, nil
}

// Clone gives the same.
func (p peerCredentials) Clone() credentials.TransportCredentials { return p }

// nearPeer is a client that sees the files of this machine as the daemon does: it
// is of the same user, and in the same mount namespace. What it names by a path, it
// could have read itself.
type nearPeer struct{ credentials.AuthInfo }

// GetCommonAuthInfo is that of the connection.
func (n nearPeer) GetCommonAuthInfo() credentials.CommonAuthInfo {
	return credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}
}

// isNear reports whether the process that connected is of this one's user and in
// its mount namespace. A process in a container is not, though it may have the same
// user's number and have been given the socket. The descriptor of the process is
// held meanwhile, so that its number cannot come to mean another.
func isNear(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var who *unix.Ucred
	var pid = -1
	if cerr := raw.Control(func(fd uintptr) {
		if who, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid, err = unix.PidfdOpen(int(who.Pid), 0)
		}
	}); cerr != nil || err != nil {
		return false
	}
	defer unix.Close(pid)
	if int(who.Uid) != os.Geteuid() {
		return false
	}
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/ns/mnt", who.Pid))
	if err != nil {
		return false
	}
	ours, err := os.Stat("/proc/self/ns/mnt")
	if err != nil || !os.SameFile(theirs, ours) {
		return false
	}
	return unix.PidfdSendSignal(pid, 0, nil, 0) == nil // it was that process all the time
}

// user names the user that a request comes from: the daemon's own, where the client is
// near, or the owner of a certificate that was verified; empty is not known.
func user(ctx context.Context) string {
	who, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	switch info := who.AuthInfo.(type) {
	case nearPeer:
		return "near"
	case credentials.TLSInfo:
		if chains := info.State.VerifiedChains; len(chains) > 0 {
			return fmt.Sprintf("%q of %q", chains[0][0].RawSubject, chains[0][0].RawIssuer)
		}
	}
	return ""
}

// near reports whether a request comes from a client that is near.
func near(ctx context.Context) bool {
	who, ok := peer.FromContext(ctx)
	if !ok {
		return false
	}
	_, near := who.AuthInfo.(nearPeer)
	return near
}

// folders gives the folders that the client of a request says it has here, by
// their names in the build; none where the client is not near.
func folders(ctx context.Context) map[string]string {
	if !near(ctx) {
		return nil
	}
	out := map[string]string{}
	for _, v := range metadata.ValueFromIncomingContext(ctx, request.FolderHeader) {
		if name, dir, ok := strings.Cut(v, "="); ok && filepath.IsAbs(dir) {
			out[name] = filepath.Clean(dir)
		}
	}
	return out
}
