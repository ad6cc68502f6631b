package executor

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// authorityLists are where Linux distributions keep the authorities that programs trust.
var authorityLists = []string{
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem",
	"/etc/pki/tls/cacert.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/etc/ssl/cert.pem",
}

// maxAuthorities bounds a list, which an image or a step may make as large as it likes.
const maxAuthorities = 10 << 20

// Lines around what is added to a list, in BuildKit's words: programs look for them.
const (
	trustBegin = "\n# buildkit proxy CA begin\n"
	trustEnd   = "# buildkit proxy CA end\n"
)

// trusting is a list of authorities that the proxy's certificate was added to.
type trusting struct {
	name   string // without links
	was    unix.Stat_t
	sum    [sha256.Size]byte // of what was in it
	copied []copied          // folders that this put into the upper folder
	// cover is the file of the host that lies over a list which cannot be written to.
	cover string
}

// ResidueError is a process after which something of the builder's could not be taken
// out of its files: they are no result.
type ResidueError struct {
	Left error
	Exit error // what Run would have reported otherwise; nil is a good end
}

func (e *ResidueError) Error() string {
	if e.Exit != nil {
		return e.Exit.Error() + "; " + e.Left.Error()
	}
	return e.Left.Error()
}

// Unwrap gives both errors.
func (e *ResidueError) Unwrap() []error {
	if e.Exit == nil {
		return []error{e.Left}
	}
	return []error{e.Exit, e.Left}
}

// trust adds the proxy's certificate to the root's lists of authorities. It is to be
// called before anything is mounted in the root.
func (b *box) trust() error {
	if b.s.Proxy == nil || len(b.s.Proxy.Certificate) == 0 {
		return nil
	}
	seen := map[string]bool{}
	for _, list := range authorityLists {
		name, err := b.root.resolve(list)
		if err != nil || seen[name] {
			continue // a link that leads nowhere is no list
		}
		seen[name] = true
		if err := b.addAuthority(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// addition is what is added to a list.
func (b *box) addition() []byte {
	cert := bytes.TrimRight(b.s.Proxy.Certificate, "\n")
	return []byte(trustBegin + string(cert) + "\n" + trustEnd)
}

func (b *box) addAuthority(name string) error {
	at, err := b.root.plain(name)
	if err != nil {
		return nil // no such list
	}
	defer unix.Close(at)
	t := trusting{name: name}
	if err := unix.Fstat(at, &t.was); err != nil {
		return err
	}
	if t.was.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	f, err := reopen(at, os.O_RDONLY)
	if err != nil {
		return err
	}
	content, err := readList(f)
	f.Close()
	if err != nil {
		return err
	}
	if b.s.Root.Upper == "" {
		return b.coverList(name, append(content, b.addition()...))
	}
	t.sum = sha256.Sum256(content)
	t.copied = b.aboutToCopy(b.s.Root.Upper, name, name)
	if f, err = reopen(at, os.O_WRONLY|os.O_APPEND); err != nil {
		return err
	}
	defer f.Close()
	b.lists = append(b.lists, t)
	if _, err := f.Write(b.addition()); err != nil {
		return err
	}
	setTimes(int(f.Fd()), &t.was)
	return nil
}

// coverList mounts content over a list of a root that cannot be written to.
func (b *box) coverList(name string, content []byte) error {
	f, err := os.CreateTemp(b.n.path("names"), "authorities-")
	if err != nil {
		return err
	}
	b.lists = append(b.lists, trusting{cover: f.Name()})
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	fd, err := clone(unix.AT_FDCWD, f.Name())
	if err != nil {
		return err
	}
	b.keep(fd)
	if err := restrict(fd, unix.MOUNT_ATTR_RDONLY|hardened); err != nil {
		return err
	}
	return b.place(fd, name, place{}, false)
}

// distrust takes the proxy's certificate out of the lists again. The process has ended;
// it may have written anything there.
func (b *box) distrust() error {
	lists := map[string]trusting{}
	for _, t := range b.lists {
		if t.cover != "" {
			os.Remove(t.cover) // nothing of it is in the process's files
			continue
		}
		lists[t.name] = t
	}
	if len(lists) == 0 {
		return nil
	}
	upper, err := unix.Open(b.s.Root.Upper, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("failed to clean up proxy CA: opening %s: %w", b.s.Root.Upper, err)
	}
	defer unix.Close(upper)
	// A list may have moved: its names may lead elsewhere by now.
	for _, list := range authorityLists {
		name, err := rootDir(upper).resolve(list)
		if _, known := lists[name]; err == nil && !known {
			lists[name] = trusting{}
		}
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(lists)) {
		if err := b.removeAuthority(upper, name, lists[name]); err != nil {
			errs = append(errs, fmt.Errorf("failed to clean up proxy CA: %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// removeAuthority cleans what an upper folder has at name. t is what was done to that
// list, if anything.
func (b *box) removeAuthority(upper int, name string, t trusting) error {
	at, err := below(upper, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return nil // the process has removed it, or never had it here
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return err
	}
	f, err := reopen(at, os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	content, err := readList(f)
	if err != nil {
		return err
	}
	cleaned := b.without(content)
	if t.name != "" && st.Nlink == 1 && sha256.Sum256(cleaned) == t.sum && unchanged(&st, &t.was) {
		// As it is in the layer below: the process has not touched it. One that has a
		// second name by now is cleaned, or it would keep the certificate there.
		removeStub(upper, stub{name: name, copied: t.copied, file: true})
		return nil
	}
	if len(cleaned) == len(content) {
		return nil
	}
	if _, err := f.WriteAt(cleaned, 0); err != nil {
		return err
	}
	if err := f.Truncate(int64(len(cleaned))); err != nil {
		return err
	}
	setTimes(int(f.Fd()), &st)
	return nil
}

// without takes the certificate out of a list, with what was put around it or without.
func (b *box) without(content []byte) []byte {
	cert := bytes.TrimSpace(b.s.Proxy.Certificate)
	if !bytes.Contains(content, cert) {
		return content
	}
	content = bytes.ReplaceAll(content, b.addition(), nil)
	content = bytes.ReplaceAll(content, append(bytes.Clone(cert), '\n'), nil)
	return bytes.ReplaceAll(content, cert, nil)
}

func unchanged(st, was *unix.Stat_t) bool {
	return st.Mode == was.Mode && st.Uid == was.Uid && st.Gid == was.Gid && st.Mtim == was.Mtim
}

// readList reads a list of authorities, if it is not too large for one.
func readList(f *os.File) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(f, maxAuthorities+1))
	if err == nil && len(content) > maxAuthorities {
		err = fmt.Errorf("it exceeds %d bytes", maxAuthorities)
	}
	return content, err
}

// reopen opens a regular file, that at leads to, for reading or writing.
func reopen(at int, flags int) (*os.File, error) {
	return os.OpenFile("/proc/thread-self/fd/"+strconv.Itoa(at), flags|unix.O_CLOEXEC, 0)
}
