package script

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kiln-build/kiln/test/internal/peer"
)

func cmdARM64(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 0, "arm64")
	dir, err := peer.Foreign()
	ts.Check(err)
	ts.Setenv("ARM64", dir)
}

// registerScript registers the emulator that $1 describes, and becomes the rest.
const registerScript = `set -e
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
printf %s "$1" >/proc/sys/fs/binfmt_misc/register
shift
exec "$@"`

// cmdEmulated runs a command in a user namespace of its own, since such a one has
// its own list of emulators: the machine's stays as it is.
func cmdEmulated(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 1, "[!] emulated CMD [ARG…]")
	dir := ts.Getenv("ARM64")
	conf, err := os.ReadFile(filepath.Join(dir, "qemu-aarch64.conf"))
	ts.Check(err)
	// Debian's own registration, but for the place.
	fields := strings.Split(strings.TrimSpace(string(conf)), ":")
	if len(fields) != 8 || !strings.Contains(fields[7], "F") {
		ts.Fatalf("Debian registers the emulator in another way now: %s", conf)
	}
	fields[6] = filepath.Join(dir, filepath.Base(fields[6]))
	cmd := exec.Command("sh", append([]string{"-c", registerScript, "sh", strings.Join(fields, ":")}, args...)...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"), "KILN_ROOT="+ts.Getenv("KILN_ROOT"), "ARM64="+dir)
	ids := []syscall.SysProcIDMap{{Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
	}
	out, err := cmd.CombinedOutput()
	fmt.Fprint(ts.Stderr(), string(out))
	if (err != nil) != neg {
		ts.Fatalf("running %v under an emulator: %v", args, err)
	}
}
