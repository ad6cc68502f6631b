package source

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"encoding/pem"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/hiddeco/sshsig"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/crypto/ssh"
)

// A signer signs texts, as somebody whose public key is known does.
type signer struct {
	public string
	sign   func(text string) string
}

func sshSigner(t *testing.T) signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer{string(ssh.MarshalAuthorizedKey(s.PublicKey())), func(text string) string {
		sig, err := sshsig.Sign(strings.NewReader(text), s, sshsig.HashSHA512, "git")
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "SSH SIGNATURE", Bytes: sig.Marshal()}))
	}}
}

// pgpSigner has a key that was made when the clock says, and lasts for that long; 0 is for ever.
func pgpSigner(t *testing.T, made time.Time, lasts time.Duration) signer {
	t.Helper()
	conf := &packet.Config{Time: func() time.Time { return made }, KeyLifetimeSecs: uint32(lasts.Seconds()), DefaultHash: crypto.SHA256}
	e, err := openpgp.NewEntity("a", "", "a@example.com", conf)
	if err != nil {
		t.Fatal(err)
	}
	var public bytes.Buffer
	w, err := armor.Encode(&public, openpgp.PublicKeyType, nil)
	if err == nil {
		if err = e.Serialize(w); err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return signer{public.String(), func(text string) string {
		var sig bytes.Buffer
		if err := openpgp.ArmoredDetachSign(&sig, e, strings.NewReader(text), conf); err != nil {
			t.Fatal(err)
		}
		return sig.String() + "\n"
	}}
}

// object makes an object of a repository and gives its name.
func (s *gitServer) object(repo, kind, text string) string {
	s.t.Helper()
	cmd := exec.Command("git", "hash-object", "-t", kind, "-w", "--stdin")
	cmd.Dir, cmd.Stdin = filepath.Join(s.dir, repo), strings.NewReader(text)
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// signedCommit makes a commit of the files of HEAD that is signed, under a branch.
func (s *gitServer) signedCommit(repo, branch string, by signer) (commit string) {
	s.t.Helper()
	head := "tree " + s.git(repo, "rev-parse", "HEAD^{tree}") + "\nauthor a <a@example.com> 1000000000 +0000\ncommitter a <a@example.com> 1000000000 +0000\n"
	const message = "\nsigned\n"
	signature := strings.ReplaceAll(strings.TrimSpace(by.sign(head+message)), "\n", "\n ")
	commit = s.object(repo, "commit", head+"gpgsig "+signature+"\n"+message)
	s.git(repo, "branch", branch, commit)
	return commit
}

// signedTag makes an annotated tag that is signed.
func (s *gitServer) signedTag(repo, tag, commit string, by signer) {
	s.t.Helper()
	text := "object " + commit + "\ntype commit\ntag " + tag + "\ntagger a <a@example.com> 1000000000 +0000\n\nsigned\n"
	s.git(repo, "update-ref", "refs/tags/"+tag, s.object(repo, "tag", text+by.sign(text)))
}

func TestGitSignatures(t *testing.T) {
	srv := newGitServer(t)
	plain := srv.repo("app", "a=1")
	byKey, byPGP, stranger := sshSigner(t), pgpSigner(t, time.Now().Add(-time.Hour), 0), sshSigner(t)
	expired := pgpSigner(t, time.Now().Add(-2*time.Hour), time.Hour)
	commit := srv.signedCommit("app", "ssh", byKey)
	srv.signedCommit("app", "pgp", byPGP)
	srv.signedCommit("app", "expired", expired)
	srv.signedTag("app", "v1", plain, byKey)
	srv.signedTag("app", "v2", commit, stranger)
	srv.git("app", "tag", "light", commit)
	const key, tag, noTag, fresh = pb.AttrGitSignatureVerifyPubKey, pb.AttrGitSignatureVerifyRequireSignedTag,
		pb.AttrGitSignatureVerifyIgnoreSignedTag, pb.AttrGitSignatureVerifyRejectExpired
	c := openCache(t, t.TempDir())
	s := NewGit(c)
	// All of it is here already, by somebody who verified nothing.
	for _, ref := range []string{"main", "ssh", "pgp", "expired", "v1", "v2"} {
		if _, _, _, err := checkout(t, c, s, srv.op("app", ref, nil)); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name, ref string
		attrs     map[string]string
		want      string // of the error; empty is none
	}{
		{"a commit, by SSH", "ssh", map[string]string{key: byKey.public}, ""},
		{"by its name", commit, map[string]string{key: byKey.public}, ""},
		{"a commit, by PGP", "pgp", map[string]string{key: byPGP.public}, ""},
		{"another's", "ssh", map[string]string{key: stranger.public}, "the signature of commit " + commit},
		{"of another kind", "pgp", map[string]string{key: byKey.public}, "the signature of commit"},
		{"none", "main", map[string]string{key: byKey.public}, "not signed"},
		{"no key", "ssh", map[string]string{key: "x"}, "key"},
		{"a key that expired", "expired", map[string]string{key: expired.public}, ""},
		{"a key that must not have", "expired", map[string]string{key: expired.public, fresh: "true"}, "expired"},
		{"a tag of a commit that is not signed", "v1", map[string]string{key: byKey.public}, ""},
		{"the same, required", "v1", map[string]string{key: byKey.public, tag: "true"}, ""},
		{"the same, ignored", "v1", map[string]string{key: byKey.public, noTag: "true"}, "not signed"},
		{"another's tag of a signed commit", "v2", map[string]string{key: byKey.public}, ""},
		{"the same, required", "v2", map[string]string{key: byKey.public, tag: "true"}, "the signature of the tag"},
		{"a tag that is no object", "light", map[string]string{key: byKey.public, tag: "true"}, "a signed tag is required"},
		{"a branch, and a tag is required", "ssh", map[string]string{key: byKey.public, tag: "true"}, "a signed tag is required"},
		{"nobody's", "ssh", map[string]string{tag: "true"}, key},
		{"both", "ssh", map[string]string{key: byKey.public, tag: "true", noTag: "true"}, "exclude each other"},
	} {
		_, got, _, err := checkout(t, c, s, srv.op("app", test.ref, test.attrs))
		if test.want == "" && (err != nil || got != "a=1") || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %q, %v; want an error with %q", test.name, got, err, test.want)
		}
		if _, derr := s.Describe(t.Context(), nil, srv.op("app", test.ref, test.attrs), false); (derr == nil) != (err == nil) {
			t.Errorf("%s: it is described with %v, and taken with %v", test.name, derr, err)
		}
	}
}

func TestHTTPSignatures(t *testing.T) {
	w := newWebServer(t)
	w.header["ETag"] = `"one"`
	by, stranger := pgpSigner(t, time.Now().Add(-time.Hour), 0), pgpSigner(t, time.Now().Add(-time.Hour), 0)
	c := openCache(t, t.TempDir())
	s := NewHTTP(c)
	attrs := func(key, signature string, more ...string) map[string]string {
		out := map[string]string{pb.AttrHTTPSignatureVerifyPubKey: key, pb.AttrHTTPSignatureVerify: signature}
		for i := 0; i < len(more); i += 2 {
			out[more[i]] = more[i+1]
		}
		return out
	}
	const sum = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" // of "hello"
	for _, test := range []struct {
		name  string
		attrs map[string]string
		want  string // of the error; empty is none
	}{
		{"good", attrs(by.public, by.sign("hello")), ""},
		{"with a checksum", attrs(by.public, by.sign("hello"), pb.AttrHTTPChecksum, sum), ""},
		{"of another text", attrs(by.public, by.sign("hello!")), "failed to verify pgp signature"},
		{"of another text, with a checksum", attrs(by.public, by.sign("hello!"), pb.AttrHTTPChecksum, sum), "failed to verify pgp signature"},
		{"another's", attrs(by.public, stranger.sign("hello")), "failed to verify pgp signature"},
		{"no signature", attrs(by.public, "x"), "failed to verify pgp signature"},
		{"no key", attrs("x", by.sign("hello")), "failed to verify pgp signature"},
		{"half of it", attrs(by.public, ""), "takes both"},
	} {
		op := &pb.SourceOp{Identifier: w.URL + "/a", Attrs: test.attrs}
		got, _, err := file(t, c, s, op)
		if test.want == "" && (err != nil || got != "a=hello") || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %q, %v; want an error with %q", test.name, got, err, test.want)
		}
		if _, derr := s.Describe(t.Context(), nil, op); (derr == nil) != (err == nil) {
			t.Errorf("%s: it is described with %v, and taken with %v", test.name, derr, err)
		}
	}
	// The server has another file by now.
	op := &pb.SourceOp{Identifier: w.URL + "/a", Attrs: attrs(by.public, by.sign("hello"))}
	w.text, w.header["ETag"] = "hacked", `"two"`
	if _, _, err := file(t, c, s, op); err == nil || !strings.Contains(err.Error(), "failed to verify pgp signature") {
		t.Errorf("a file that was exchanged: got %v", err)
	}
}
