package cache

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const mountsDockerfile = `ARG BASE
FROM $BASE
COPY app.txt /
RUN --mount=type=cache,target=/c,id=things cat /app.txt >> /c/log && echo "ran log" && echo "found $(tr '\n' , < /c/log)"
`

// logOf gives what the step found in its cache mount, and added.
func logOf(o outcome) string {
	for line := range strings.Lines(o.text) {
		if _, found, ok := strings.Cut(line, " found "); ok && !strings.Contains(line, "RUN") {
			return strings.TrimSpace(found)
		}
	}
	return ""
}

// TestMounts has runners hand a cache mount on, each with its state folder empty.
func TestMounts(t *testing.T) {
	t.Parallel()
	r := registry(t)
	dir := t.TempDir()
	write := func(app string) {
		t.Helper()
		for name, data := range map[string]string{"Dockerfile": mountsDockerfile, "app.txt": app} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	ref := "type=registry,ref=" + r.Addr + "/cache"
	both := []string{"--cache-from", ref, "--cache-to", ref + ",mode=max,mounts=true"}
	for _, step := range []struct {
		app, want string
		flags     []string
	}{
		{"a\n", "a,", both},
		{"b\n", "a,b,", both},
		{"c\n", "a,b,c,", []string{"--cache-from", ref}},
		{"d\n", "a,b,d,", []string{"--cache-from", ref}}, // the last was not saved
		{"e\n", "e,", nil},
	} {
		write(step.app)
		if o := newRunner(t).must(dir, step.flags...); logOf(o) != step.want {
			t.Errorf("with %q the mount held %q, want %q\n%s", step.app, logOf(o), step.want, o.text)
		}
	}
	// A build of which everything hits brings no mount back, and keeps the snapshot.
	write("b\n")
	_, before := requests(t, r, 0)
	if o := newRunner(t).must(dir, both...); len(o.ran) > 0 {
		t.Errorf("%q ran\n%s", o.ran, o.text)
	}
	lines, _ := requests(t, r, before)
	if n := blobsRead(lines, "cache"); n != 1 {
		t.Errorf("%d blobs were read, want the index alone:\n%s", n, strings.Join(lines, "\n"))
	}
	write("f\n")
	if o := newRunner(t).must(dir, "--cache-from", ref); logOf(o) != "a,b,f," {
		t.Errorf("the mount held %q\n%s", logOf(o), o.text)
	}
}

// TestSigned has a runner take only what a key has signed.
func TestSigned(t *testing.T) {
	t.Parallel()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	stranger, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	keys := t.TempDir()
	save := func(name, kind string, der []byte, err error) string {
		file := filepath.Join(keys, name)
		if err == nil {
			err = os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	key := save("key", "PRIVATE KEY", der, err)
	der, err = x509.MarshalPKIXPublicKey(public)
	pub := save("pub", "PUBLIC KEY", der, err)
	der, err = x509.MarshalPKIXPublicKey(stranger)
	other := save("other", "PUBLIC KEY", der, err)

	dir, changed := context(t, "one\n"), context(t, "two\n")
	folder := filepath.Join(t.TempDir(), "c")
	to, from := "type=local,mode=max,dest="+folder, "type=local,src="+folder
	newRunner(t).must(dir, "--cache-to", to+",sign="+key)
	// Somebody without the key adds what nobody who asks for signatures is to take.
	newRunner(t).must(changed, "--cache-from", from, "--cache-to", to)
	for _, c := range []struct {
		name, dir, verify string
		ran               []string
	}{
		{"signed", dir, ",verify=" + pub, nil},
		{"by another key", dir, ",verify=" + other, all},
		{"not signed", changed, ",verify=" + pub, []string{"app"}},
		{"not asked for", changed, "", nil},
	} {
		o := newRunner(t).must(c.dir, append(tarball(t), "--cache-from", from+c.verify)...)
		if o.check(t, c.ran, wanted(t, c.dir)); t.Failed() {
			t.Fatal(c.name)
		}
	}
	for _, c := range []struct{ flag, value, want string }{
		{"--cache-from", from + ",verify=" + key, "private key"},
		{"--cache-to", to + ",sign=" + pub, "no private key"},
		{"--cache-to", "type=inline,sign=" + key, "inline"},
	} {
		if o := newRunner(t).build(dir, c.flag, c.value); o.err == nil || !strings.Contains(o.text, c.want) {
			t.Errorf("%s %s: got %v, want it refused with %q\n%s", c.flag, c.value, o.err, c.want, o.text)
		}
	}
}
