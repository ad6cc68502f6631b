package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"time"
)

// idleSeconds is how long they wait: an engine gives memory back some seconds
// after its last build.
const idleSeconds = 20

// W15: the memory of an engine that waits. The peaks stand in the tables of the
// other workloads.

// memoryRound has an engine, or the daemon, build W4's image and then wait. The
// sample's memory is what is resident then.
func memoryRound(r *run) error {
	file, err := r.write("memory/Dockerfile", fmt.Sprintf(filesDockerfile, r.debian))
	if err != nil {
		return err
	}
	b := build{context: sources.context(r.lab), dockerfile: file}
	switch t := r.tool.(type) {
	case *kilnTool:
		e, err := r.engine(1, idleSeconds, b.context, file)
		if err != nil {
			return err
		}
		r.samples["W15"] = sample{Seconds: e.Total, Memory: e.Idle}
	case *buildkit:
		if err := r.untimed(b); err != nil {
			return err
		}
		idle, err := t.idle(r.ctx)
		if err != nil {
			return err
		}
		r.samples["W15"] = sample{Memory: idle}
	}
	return nil
}

// idle gives the daemon's resident bytes after the wait.
func (b *buildkit) idle(ctx context.Context) (int64, error) {
	select {
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-time.After(idleSeconds * time.Second):
	}
	kb, err := procField(filepath.Join("/proc", strconv.Itoa(b.cmd.Process.Pid), "status"), "VmRSS:")
	return kb << 10, err
}
