package peer

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// Nginx is a running nginx, which stores what is put under any path and gives it
// back: the plainest of the servers that Bazel's documentation names for its caches.
// It wants the user "ci" with the password "hidden".
type Nginx struct {
	Addr string // "127.0.0.1:PORT"
	cmd  *exec.Cmd
}

const nginxConfig = `daemon off;
user root;
worker_processes 1;
pid pid;
events {}
http {
	access_log access.log;
	client_body_temp_path temp;
	proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
	server {
		listen %s;
		root data;
		auth_basic cache;
		auth_basic_user_file users;
		location / {
			dav_methods PUT;
			create_full_put_path on;
			client_max_body_size 0;
		}
	}
}
`

// StartNginx starts an nginx that keeps everything in dir.
func StartNginx(dir string) (*Nginx, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	// It can tell nobody which port it was given, but takes over a socket that listens.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	n := &Nginx{Addr: l.Addr().String()}
	for _, d := range []string{"data", "temp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	for name, data := range map[string]string{"conf": fmt.Sprintf(nginxConfig, n.Addr), "users": "ci:{PLAIN}hidden\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			return nil, err
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	n.cmd = exec.Command(filepath.Join(cache, "kiln-test", "nginx"), "-p", dir+"/", "-c", "conf", "-e", "stderr")
	n.cmd.Env = append(os.Environ(), "NGINX=3;")
	n.cmd.ExtraFiles = []*os.File{socket}
	n.cmd.Stdout, n.cmd.Stderr = log, log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := n.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting nginx (`make deps` fetches it): %w", err)
	}
	return n, nil
}

// Stop ends the server, and the process that works for it.
func (n *Nginx) Stop() {
	n.cmd.Process.Signal(syscall.SIGTERM)
	n.cmd.Wait()
}
