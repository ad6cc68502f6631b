package script

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/kiln-build/kiln/registry/registrytest"
)

// certificate makes a certificate of 127.0.0.1 that is its own authority.
func certificate(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a registry"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})))
	return cert, key
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// kilnBuild builds a context, and checks that it works, or fails with those words.
func kilnBuild(t *testing.T, dir string, env []string, fails string, args ...string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(shared.bin, "kiln"), append([]string{"build", "--progress", "plain"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "KILN_ROOT="+filepath.Join(dir, "state"), "DOCKER_CONFIG="+filepath.Join(dir, "docker")), env...)
	out, err := cmd.CombinedOutput()
	if (err != nil) != (fails != "") || !strings.Contains(string(out), fails) {
		t.Errorf("kiln build %v: %v, want %q\n%s", args, err, fails, out)
	}
}

// TestRegistryWithLoginAndPrivateCA pushes to and builds on a registry whose
// certificate no system knows, and which wants a login: each thing that is missing
// is said, with what to do about it.
func TestRegistryWithLoginAndPrivateCA(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t, dir)
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	passwords := filepath.Join(dir, "htpasswd")
	write(t, passwords, "alice:"+string(hash)+"\n")
	t.Setenv("REGISTRY_HTTP_TLS_CERTIFICATE", cert)
	t.Setenv("REGISTRY_HTTP_TLS_KEY", key)
	host := registrytest.Start(t, fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", passwords)).Host

	write(t, filepath.Join(dir, "context", "Dockerfile"), "ARG BASE\nFROM $BASE\nRUN echo pushed >> /pushed\n")
	config := filepath.Join(dir, "kiln.toml")
	base := "--build-arg=BASE=" + shared.registry.Addr + "/busybox"
	push := []string{"--config", config, base, "--push", "-t", host + "/private/app:1", "context"}

	write(t, config, fmt.Sprintf("[registry.%q]\nhttp = false\n", host))
	kilnBuild(t, dir, nil, "certificate of "+host+" cannot be verified", push...)
	write(t, config, fmt.Sprintf("[registry.%q]\nhttp = false\nca = [%q]\n", host, cert))
	kilnBuild(t, dir, nil, "docker login "+host, push...)
	login := func(password string) {
		token := base64.StdEncoding.EncodeToString([]byte("alice:" + password))
		write(t, filepath.Join(dir, "docker", "config.json"), fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, host, token))
	}
	login("wrong")
	kilnBuild(t, dir, nil, "docker login "+host, push...)
	login("secret")
	kilnBuild(t, dir, nil, "", push...)
	kilnBuild(t, dir, nil, "", "--config", config, "--build-arg=BASE="+host+"/private/app:1", "--no-cache", "context")

	// Without the certificate, if that is asked for.
	write(t, config, fmt.Sprintf("[registry.%q]\nhttp = false\ninsecure = true\n", host))
	kilnBuild(t, dir, nil, "", push...)

	// A key that is misspelled is no key at all.
	write(t, config, fmt.Sprintf("[registry.%q]\ninsecur = true\n", host))
	kilnBuild(t, dir, nil, "insecur", push...)
	write(t, config, "[registry\n")
	kilnBuild(t, dir, nil, "kiln.toml:1", push...)
}

// TestRegistryByConfiguration reaches registries by names that only the
// configuration makes sense of: a mirror, and plain HTTP.
func TestRegistryByConfiguration(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "kiln.toml")
	write(t, filepath.Join(dir, "context", "Dockerfile"), "ARG BASE\nFROM $BASE\nRUN true\n")
	proxy := registrytest.NewProxy(t, shared.registry.Addr)

	// The first mirror is down.
	write(t, config, fmt.Sprintf("[registry.\"images.invalid\"]\nmirrors = [\"127.0.0.1:1\", %q]\n", proxy.Host))
	kilnBuild(t, dir, nil, "", "--config", config, "--build-arg=BASE=images.invalid/busybox", "context")
	if len(proxy.Log()) == 0 {
		t.Error("the mirror was not asked")
	}

	// A host whose address only an HTTP proxy knows, and which speaks no TLS.
	env := []string{"HTTP_PROXY=http://" + proxy.Host, "http_proxy=", "NO_PROXY=", "no_proxy="}
	write(t, config, "[registry.\"plain.invalid\"]\nhttp = true\n")
	kilnBuild(t, dir, env, "", "--config", config, "--no-cache", "--build-arg=BASE=plain.invalid/busybox", "context")
	kilnBuild(t, dir, env, "other.invalid", "--config", config, "--build-arg=BASE=other.invalid/busybox", "context")
}
