package worker

import (
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Platforms are those whose programs this machine runs: its own first, then those that
// the kernel has emulators for, now. An emulator that would have to be in the image
// counts for none.
func Platforms() []ocispecs.Platform {
	own := platforms.Normalize(platforms.DefaultSpec())
	out := []ocispecs.Platform{own}
	for _, arch := range emulated(binfmtDir) {
		if arch != runtime.GOARCH {
			out = append(out, platforms.Normalize(ocispecs.Platform{OS: "linux", Architecture: arch}))
		}
	}
	return out
}

// emulated lists the processors that there are emulators for, by Go's names.
func emulated(binfmt string) []string {
	status, err := os.ReadFile(filepath.Join(binfmt, "status"))
	if err != nil || strings.TrimSpace(string(status)) != "enabled" {
		return nil
	}
	entries, err := os.ReadDir(binfmt)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		h, ok := readHandler(filepath.Join(binfmt, e.Name()))
		if ok && h.enabled && h.fixed {
			if arch := h.processor(); arch != "" && !slices.Contains(out, arch) {
				out = append(out, arch)
			}
		}
	}
	slices.Sort(out)
	return out
}

// elfKind is what tells the programs of processors apart at the beginning of a file:
// whether it is of 64 bits, whether the lowest byte comes first, and the machine.
type elfKind struct {
	wide, little bool
	machine      uint16
}

// elfKinds are the numbers of the ELF specification.
var elfKinds = map[elfKind]string{
	{true, true, 62}:  "amd64",
	{false, true, 3}:  "386",
	{true, true, 183}: "arm64",
	{false, true, 40}: "arm",
	{true, true, 243}: "riscv64",
	{true, true, 258}: "loong64",
	{true, true, 21}:  "ppc64le",
	{true, false, 21}: "ppc64",
	{true, false, 22}: "s390x",
	{true, true, 8}:   "mips64le",
	{true, false, 8}:  "mips64",
	{false, true, 8}:  "mipsle",
	{false, false, 8}: "mips",
}

// processor says whose ELF programs a handler runs, by the bytes at the beginning of
// files that it is for; empty where it is for something else.
func (h handler) processor() string {
	magic, err := hex.DecodeString(h.magic)
	if err != nil || h.offset != "0" || len(magic) < 20 || string(magic[:4]) != "\x7fELF" {
		return ""
	}
	kind := elfKind{wide: magic[4] == 2, little: magic[5] == 1}
	kind.machine = binary.BigEndian.Uint16(magic[18:])
	if kind.little {
		kind.machine = binary.LittleEndian.Uint16(magic[18:])
	}
	return elfKinds[kind]
}
