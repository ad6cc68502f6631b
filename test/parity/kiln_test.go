//go:build parity

package parity

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// limit bounds one build.
const limit = 4 * time.Minute

// outcome is how a build ended: a tarball or an answer, or an error with what was printed.
type outcome struct {
	tarball string
	answer  string
	log     string
	err     error
}

// kiln is the command under test. Builds take turns: a state folder has one owner.
type kiln struct {
	bin, root, config string
	env               []string
	mu                sync.Mutex
}

func (k *kiln) build(c *testCase, f *folders, dest string) outcome {
	args := []string{"build", "--root", k.root, "--config", k.config, "--progress", "plain"}
	if c.call != "" {
		args = append(args, "--call", c.call+",ignorestatus")
	} else {
		args = append(args, "--output", join("type=oci,dest="+dest, c.output))
	}
	from := f.vars.Replace(c.context)
	inFolder := !strings.Contains(from, "://") && from != "-"
	words := f.expandAll(c.args)
	for i, w := range words {
		if inFolder && i > 0 && (words[i-1] == "-f" || words[i-1] == "--file") && w != "-" && !filepath.IsAbs(w) {
			w = filepath.Join(f.context, w)
		}
		args = append(args, w)
	}
	if inFolder {
		from = filepath.Join(f.context, from)
	}
	var stdin io.Reader
	if c.stdin != "" {
		name := filepath.Join(f.context, c.stdin)
		if c.stdin == "tar" {
			name = filepath.Join(f.dirs, ".stdin.tar")
			if err := tarContext(f, name); err != nil {
				return outcome{err: err}
			}
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return outcome{err: err}
		}
		stdin = bytes.NewReader(data)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	answer, log, err := run(stdin, append(k.env, c.env...), k.bin, append(args, from)...)
	if c.call == "check" {
		// buildx and kiln begin with a summary; buildctl prints the frontend's text alone.
		_, answer, _ = strings.Cut(answer, "\n")
	}
	return outcome{tarball: dest, answer: answer, log: log, err: err}
}

// run runs a command in a process group of its own and gives what it printed.
func run(stdin io.Reader, env []string, name string, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, log bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = stdin, &out, &log, env
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("not finished after %v", limit)
	}
	return out.String(), log.String(), err
}
