package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The room on the disk that a run needs. What rounds leave is removed when room is
// short, and else when all is measured: removing millions of files takes minutes, and
// whoever makes files after that pays for it (see states).

// needs gives how many bytes have to be free when a workload begins: what its rounds
// leave is removed between them where it has to be. To what grows with the size comes
// the base image in each state.
func (w workload) needs(scale float64) uint64 {
	disk := w.disk
	if disk == 0 {
		disk = 6
	}
	return 2<<30 + uint64(disk*scale*(1<<30))
}

// checkRoom refuses a run of workloads that its folder has not the room for.
func checkRoom(dir string, scale float64, run []workload, free uint64) error {
	if len(run) == 0 {
		return nil
	}
	most := slices.MaxFunc(run, func(a, b workload) int { return int(a.needs(scale)>>20) - int(b.needs(scale)>>20) })
	if need := most.needs(scale); free < need {
		return fmt.Errorf("%s has %.1f GB free, and “%s” needs %.1f: make room, name another folder by -dir, or name fewer workloads",
			dir, gigabytes(free), strings.ToLower(most.name[:1])+most.name[1:], gigabytes(need))
	}
	return nil
}

func gigabytes(n uint64) float64 { return float64(n) / (1 << 30) }

// freeBytes gives what may be written to the disk of a folder.
func freeBytes(dir string) (uint64, error) {
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		return 0, fmt.Errorf("asking for the room in %s: %w", dir, err)
	}
	return disk.Bavail * uint64(disk.Bsize), nil
}

// clear removes what earlier workloads left if this one would else not have room.
func (l *lab) clear(w workload) error {
	free, err := freeBytes(l.dir)
	if err != nil || free >= w.needs(l.scale) {
		return err
	}
	if err := l.remove("state-*", "src", "out"); err != nil {
		return err
	}
	for _, d := range []string{"out", "src"} {
		if err := os.Mkdir(filepath.Join(l.dir, d), 0o755); err != nil {
			return err
		}
	}
	if free, err = freeBytes(l.dir); err != nil {
		return err
	}
	return checkRoom(l.dir, l.scale, []workload{w}, free)
}

// makeRoom removes the states of earlier rounds if the next one might not find room: it
// is one tool's, and takes half of what a round of every tool does at the most.
func (l *lab) makeRoom(w workload, o *outcome) error {
	enough := w.needs(l.scale) / 2
	free, err := freeBytes(l.dir)
	if err != nil || free >= enough {
		return err
	}
	o.note([]string{"States of earlier rounds were removed between rounds, since the disk was short of room; what makes files after that is slower."})
	if err := l.remove("state-*"); err != nil {
		return err
	}
	if free, err = freeBytes(l.dir); err == nil && free < enough {
		err = fmt.Errorf("%s has %.1f GB free, and a round needs %.1f: the run cannot go on", l.dir, gigabytes(free), gigabytes(enough))
	}
	return err
}

// remove removes what matches patterns in the work folder, but for the states that
// tools have at present: their daemons may run.
func (l *lab) remove(patterns ...string) error {
	var present []string
	for _, t := range l.tools {
		present = append(present, t.state())
	}
	for _, p := range patterns {
		found, err := filepath.Glob(filepath.Join(l.dir, p))
		if err != nil {
			return err
		}
		for _, path := range found {
			if slices.Contains(present, path) {
				continue
			}
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	settle()
	return nil
}
