package dockerfile

import (
	"errors"
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/sys/signal"
)

// The instructions here write the image's config and nothing else.

// label is LABEL.
func (l *line) label(c *instructions.LabelCommand) error {
	img := l.stage.state.image
	if img.Config.Labels == nil {
		img.Config.Labels = make(map[string]string, len(c.Labels))
	}
	created := "LABEL"
	for _, kv := range c.Labels {
		l.checkLegacyForm(c, kv)
		img.Config.Labels[kv.Key] = kv.Value
		created += " " + kv.String()
	}
	l.commit(created, false)
	return nil
}

// maintainer is MAINTAINER.
func (l *line) maintainer(c *instructions.MaintainerCommand) error {
	l.stage.state.image.Author = c.Maintainer
	l.commit("MAINTAINER "+c.Maintainer, false)
	return nil
}

// volume is VOLUME.
func (l *line) volume(c *instructions.VolumeCommand) error {
	img := l.stage.state.image
	if img.Config.Volumes == nil {
		img.Config.Volumes = map[string]struct{}{}
	}
	for _, v := range c.Volumes {
		if v == "" {
			return errors.New("VOLUME specified can not be an empty string")
		}
		img.Config.Volumes[v] = struct{}{}
	}
	l.commit(fmt.Sprintf("VOLUME %v", c.Volumes), false)
	return nil
}

// stopsignal is STOPSIGNAL.
func (l *line) stopsignal(c *instructions.StopSignalCommand) error {
	if _, err := signal.ParseSignal(c.Signal); err != nil {
		return err
	}
	l.stage.state.image.Config.StopSignal = c.Signal
	l.commit("STOPSIGNAL "+c.Signal, false)
	return nil
}

// healthcheck is HEALTHCHECK; with NONE the test is ["NONE"], which switches off
// the one of the base image.
func (l *line) healthcheck(c *instructions.HealthCheckCommand) error {
	l.checkOnce(c, &l.stage.once.healthcheck)
	h := &dockerspec.HealthcheckConfig{
		Test:          c.Health.Test,
		Interval:      c.Health.Interval,
		Timeout:       c.Health.Timeout,
		StartPeriod:   c.Health.StartPeriod,
		StartInterval: c.Health.StartInterval,
		Retries:       c.Health.Retries,
	}
	l.stage.state.image.Config.Healthcheck = h
	l.commit(fmt.Sprintf("HEALTHCHECK %+v", *h), false)
	return nil
}

// shell is SHELL: what the shell forms of RUN, CMD and ENTRYPOINT start.
func (l *line) shell(c *instructions.ShellCommand) error {
	l.stage.state.image.Config.Shell = c.Shell
	l.commit(fmt.Sprintf("SHELL %v", c.Shell), false)
	return nil
}

// cmd is CMD.
func (l *line) cmd(c *instructions.CmdCommand) error {
	l.checkOnce(c, &l.stage.once.cmd)
	args := l.commandArgs(c, c.ShellDependantCmdLine)
	config := &l.stage.state.image.Config
	config.Cmd = args
	// Docker on Windows reads this, and BuildKit sets it everywhere.
	//lint:ignore SA1019 it is deprecated in OCI's spec, not in Docker's
	config.ArgsEscaped = true
	l.commit(fmt.Sprintf("CMD %q", args), false)
	return nil
}

// entrypoint is ENTRYPOINT. A CMD that the base left was meant for another
// entrypoint, and goes; one of this stage stays.
func (l *line) entrypoint(c *instructions.EntrypointCommand) error {
	l.checkOnce(c, &l.stage.once.entrypoint)
	args := l.commandArgs(c, c.ShellDependantCmdLine)
	config := &l.stage.state.image.Config
	config.Entrypoint = args
	if l.stage.once.cmd == nil {
		config.Cmd = nil
	}
	l.commit(fmt.Sprintf("ENTRYPOINT %q", args), false)
	return nil
}

func (l *line) commandArgs(c instructions.Command, line instructions.ShellDependantCmdLine) []string {
	if !line.PrependShell {
		return line.CmdLine
	}
	img := l.stage.state.image
	if len(img.Config.Shell) == 0 {
		l.lint.Run(&linter.RuleJSONArgsRecommended, c.Location(), linter.RuleJSONArgsRecommended.Format(c.Name()))
	}
	return withShell(img, line.CmdLine)
}
