package peer

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// S3 is a running S3 server, versitygw, which keeps objects as files and checks
// the signature of every request.
type S3 struct {
	// Addr is its address, "127.0.0.1:PORT".
	Addr string
	// Bucket is one that is there; Dir is its folder.
	Bucket, Dir string
	// KeyID and Secret are what requests are signed with.
	KeyID, Secret string

	front *httptest.Server
	cmd   *exec.Cmd
}

// StartS3 starts an S3 server that keeps its objects in dir. script is build.sh of
// the peers.
func StartS3(dir, script string) (*S3, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	peers := filepath.Join(cache, "kiln-test", "peers")
	if out, err := exec.Command(script, peers, "versitygw").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building versitygw: %w\n%s", err, out)
	}
	s := &S3{Bucket: "bucket", Dir: filepath.Join(dir, "data", "bucket"), KeyID: "AKIDTEST", Secret: "a-secret-of-tests"}
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return nil, err
	}
	// It can tell nobody which port it was given, so it listens on a socket, and what
	// stands before it keeps the host that requests are signed for.
	socket := filepath.Join(dir, "socket")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.cmd = exec.Command(filepath.Join(peers, "versitygw"), "--port", socket, "--access", s.KeyID, "--secret", s.Secret,
		"--region", "us-east-1", "posix", "--sidecar", filepath.Join(dir, "meta"), filepath.Join(dir, "data"))
	if err := os.MkdirAll(filepath.Join(dir, "meta"), 0o755); err != nil {
		return nil, err
	}
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := dial(context.Background(), "", "")
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			s.Stop()
			said, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("versitygw did not come up in 20 s; its log: %s", said)
		}
	}
	proxy := &httputil.ReverseProxy{
		Transport: &http.Transport{DialContext: dial, DisableCompression: true},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "s3"})
			r.Out.Host = r.In.Host
		},
	}
	s.front = httptest.NewServer(proxy)
	s.Addr = s.front.Listener.Addr().String()
	return s, nil
}

// Attrs are the attributes of a cache in the bucket, reached at addr.
func (s *S3) Attrs(addr string) string {
	return fmt.Sprintf("type=s3,bucket=%s,region=us-east-1,endpoint_url=http://%s,use_path_style=true,access_key_id=%s,secret_access_key=%s",
		s.Bucket, addr, s.KeyID, s.Secret)
}

// Stop ends the server.
func (s *S3) Stop() {
	if s.front != nil {
		s.front.CloseClientConnections()
		s.front.Close()
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
}
