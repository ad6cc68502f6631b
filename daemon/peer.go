package daemon

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/kiln-build/kiln/request"
)

// PeerCredentials are the credentials of sockets: there is no TLS, and the kernel
// says who is at the other end.
func PeerCredentials() credentials.TransportCredentials {
	return peerCredentials{insecure.NewCredentials()}
}

type peerCredentials struct {
	credentials.TransportCredentials
}

// ServerHandshake asks the kernel who connected.
func (p peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := p.TransportCredentials.ServerHandshake(conn)
	if u, ok := conn.(*net.UnixConn); ok && err == nil && isNear(u) {
		return conn, nearPeer{info}, nil
	}
	return conn, info, err
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

// folders gives the folders that the client of a request says it has here, by
// their names in the build; none where the client is not near.
func folders(ctx context.Context) map[string]string {
	who, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	if _, near := who.AuthInfo.(nearPeer); !near {
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
