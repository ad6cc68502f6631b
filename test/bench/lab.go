package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/test/internal/peer"
)

// lab is what the workloads of a run share: the tools, a registry on this machine
// with the base images, a folder to work in.
type lab struct {
	settings
	ctx      context.Context
	began    time.Time
	dir      string
	self     string
	registry *peer.Registry
	tools    []tool
	kiln     *kilnTool
	spins    int    // turns of W8's loop in a second
	edits    int    // of W13's plain loop
	debian   string // reference of the base image
}

func openLab(ctx context.Context, s settings) (*lab, error) {
	l := &lab{settings: s, ctx: ctx, began: time.Now().UTC()}
	var err error
	if l.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if l.dir, err = os.MkdirTemp(s.cache, "run-"); err != nil {
		return nil, err
	}
	if err := spread(l.dir); err != nil {
		return nil, err
	}
	for _, d := range []string{"out", "bin", "src"} {
		if err := os.Mkdir(filepath.Join(l.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if l.registry, err = peer.StartRegistry(filepath.Join(l.dir, "registry")); err != nil {
		return nil, err
	}
	l.debian = l.registry.Addr + "/debian:bookworm"
	if _, err := l.driver(nil, "push-base", l.debian); err != nil {
		return nil, err
	}
	bin := s.kilnBin
	if bin == "" {
		if bin, err = peer.BuildKiln(filepath.Join(l.dir, "bin")); err != nil {
			return nil, err
		}
	}
	at := func(tool string) states { return states{dir: l.dir, tool: tool} }
	l.kiln = &kilnTool{states: at("kiln"), bin: bin}
	for _, name := range strings.Split(s.tools, ",") {
		switch name {
		case "kiln":
			l.tools = append(l.tools, l.kiln)
		case "buildkit":
			l.tools = append(l.tools, &buildkit{states: at("buildkit"), peers: s.peers})
		case "buildah":
			l.tools = append(l.tools, &buildah{at("buildah")})
		default:
			return nil, fmt.Errorf("no tool %q: there are kiln, buildkit and buildah", name)
		}
	}
	return l, nil
}

// spread has ext4 lay out the folders in dir all over the disk, by their names; other
// file systems do not know the flag.
func spread(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	const topDir = 0x20000 // FS_TOPDIR_FL, chattr +T
	if flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir)
	}
	return nil
}

func (l *lab) closeTools() error {
	var errs []error
	for _, t := range l.tools {
		errs = append(errs, t.close())
	}
	return errors.Join(errs...)
}

func (l *lab) close() {
	if err := l.closeTools(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	l.registry.Stop()
	if !l.keep {
		os.RemoveAll(l.dir)
	}
}

// driver runs a part of this program in a process of its own, so that its memory
// is not this one's, and gives what it prints.
func (l *lab) driver(env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(l.ctx, l.self, args...)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", args[0], err, log.Bytes())
	}
	return out.String(), nil
}

// scaled gives a number at the size of this run, 1 at least.
func (l *lab) scaled(n int) int { return max(1, int(float64(n)*l.scale)) }

// write writes a file of the work folder and gives its path.
func (l *lab) write(name, text string) (string, error) {
	path := filepath.Join(l.dir, "src", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, []byte(text), 0o644)
}

// empty gives an empty folder as a context.
func (l *lab) empty() (string, error) {
	dir := filepath.Join(l.dir, "src", "empty")
	return dir, os.MkdirAll(dir, 0o755)
}

// warm has a tool pull a base image, which is no part of what is timed: a step
// needs its files.
func (r *run) warm(base string) error {
	file, err := r.write("warm/Dockerfile", "FROM "+base+"\nRUN true\n")
	if err != nil {
		return err
	}
	return r.untimed(build{context: filepath.Dir(file), dockerfile: file})
}

// host describes the machine and the versions, a line each.
func (l *lab) host() []string {
	var lines []string
	add := func(name, value string) { lines = append(lines, name+": "+strings.TrimSpace(value)) }
	cpu := "unknown"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = v
			}
		}
	}
	add("Processors", fmt.Sprintf("%d of %s", runtime.NumCPU(), strings.TrimSpace(cpu)))
	if kb, err := procField("/proc/meminfo", "MemTotal:"); err == nil {
		add("Memory", fmt.Sprintf("%.0f GB", float64(kb)/(1<<20)))
	}
	add("System", output("uname", "-sr"))
	add("File system of the state folders", output("findmnt", "--noheadings", "--output", "FSTYPE", "--target", l.dir))
	add("kiln", l.revision())
	add("BuildKit", moduleVersion(filepath.Join(l.peers, "buildkitd"), "github.com/moby/buildkit"))
	add("buildah", output("buildah", "--version"))
	first, _, _ := strings.Cut(output("runc", "--version"), "\n")
	add("runc", first)
	add("Go", runtime.Version())
	return lines
}

func output(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "unknown (" + err.Error() + ")"
	}
	return string(out)
}

// moduleVersion gives the version of a module that a Go program was built of.
func moduleVersion(program, module string) string {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return "unknown (" + err.Error() + ")"
	}
	for _, d := range append(info.Deps, &info.Main) {
		if d.Path == module {
			return d.Version
		}
	}
	return "unknown"
}

// revision gives the commit that is measured. Of a kiln that was built elsewhere
// it is not known.
func (l *lab) revision() string {
	if l.kilnBin != "" {
		return "unknown (kiln was built before)"
	}
	return strings.TrimSpace(output("git", "describe", "--always", "--dirty"))
}
