package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
)

// Steps without a builder: an overlay, namespaces, a process.

// runStep runs a command in an overlay of its own over lowers, the uppermost first,
// in new namespaces. What it wrote is in the folder "NAME/upper" then. The working
// folder is that of the steps: relative names keep the mount's options short.
func runStep(name string, lowers []string, command string) error {
	for _, d := range []string{"upper", "work", "merged"} {
		if err := os.MkdirAll(filepath.Join(name, d), 0o755); err != nil {
			return err
		}
	}
	merged, err := filepath.Abs(filepath.Join(name, "merged"))
	if err != nil {
		return err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%[2]s/upper,workdir=%[2]s/work", strings.Join(lowers, ":"), name)
	if err := syscall.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return fmt.Errorf("mounting %s: %w", options, err)
	}
	cmd := exec.Command("/bin/sh", "-c", command)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot:     merged,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	cmd.Dir = "/"
	err = cmd.Run()
	if err = errors.Join(err, syscall.Unmount(merged, 0)); err != nil {
		return fmt.Errorf("step %s: %w", name, err)
	}
	return nil
}

// over gives lowers with what a step wrote above them.
func over(name string, lowers []string) []string {
	return append([]string{name + "/upper"}, lowers...)
}

// runSteps runs a process n times as a build does, each over the one before.
func runSteps(rootfs, dir string, n int) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	lowers := []string{rootfs}
	for i := range n {
		name := strconv.Itoa(i)
		if err := runStep(name, lowers, fmt.Sprintf("echo %d > /step%d", i, i)); err != nil {
			return err
		}
		lowers = over(name, lowers)
	}
	return nil
}

// runStages runs the steps of W14's Dockerfiles once each: those that all share one
// after the other, and then those of each file, the files beside each other.
func runStages(rootfs, dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	lowers := []string{rootfs}
	for i, command := range sharedSteps {
		name := fmt.Sprintf("shared%d", i)
		if err := runStep(name, lowers, command); err != nil {
			return err
		}
		lowers = over(name, lowers)
	}
	var group errgroup.Group
	for i := range sharing {
		group.Go(func() error { return runBranch(rootfs, lowers, i) })
	}
	return group.Wait()
}

// runBranch runs the steps that one file of W14 has for itself. The files that it
// copies between its stages are linked.
func runBranch(rootfs string, lowers []string, i int) error {
	own, result, copied := fmt.Sprintf("own%d", i), fmt.Sprintf("result%d", i), fmt.Sprintf("copied%d", i)
	if err := runStep(own, lowers, ownStep(i)); err != nil {
		return err
	}
	if err := os.Mkdir(copied, 0o755); err != nil {
		return err
	}
	for _, from := range []string{own + "/upper/own", "shared1/upper/libs", "shared2/upper/sums"} {
		if err := os.Link(from, filepath.Join(copied, filepath.Base(from))); err != nil {
			return err
		}
	}
	return runStep(result, []string{copied, rootfs}, resultStep)
}

// rootfs is where unpackBase puts the Debian base.
func (l *lab) rootfs() string { return filepath.Join(l.dir, "src", "rootfs") }

// unpackBase unpacks the Debian base for the plain loops.
func unpackBase(l *lab) error {
	if _, err := os.Stat(l.rootfs()); err == nil {
		return nil
	}
	_, err := l.driver(nil, "unpack-base", l.rootfs())
	return err
}

// sandboxes is the plain loop of n steps that do nearly nothing (see lab.parts).
func (l *lab) sandboxes(dir string, n int) []string {
	return []string{fmt.Sprintf("mount, clone, exec, unmount %d times", n), "steps", l.rootfs(), dir, strconv.Itoa(n)}
}

// start is the plain loop of a process that starts (see lab.parts).
func (l *lab) start() []string {
	return []string{"start a process of that size", "start", l.kiln.bin, "version"}
}
