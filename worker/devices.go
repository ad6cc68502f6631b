package worker

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/cdi"
	"github.com/kiln-build/kiln/worker/executor"
)

// devices finds the devices that an op asks for, checks that the build may have
// them, and gives what a container needs for them.
func (w *Worker) devices(job *solver.Job, op *pb.ExecOp) ([]*cdi.Device, error) {
	if len(op.CdiDevices) == 0 {
		return nil, nil
	}
	where := "no specification in " + strings.Join(w.deviceDirs, ", ") + " has it"
	if len(w.deviceDirs) == 0 {
		where = "the configuration disables devices"
	}
	known, err := cdi.Read(w.deviceDirs...)
	if err != nil {
		return nil, err
	}
	var out []*cdi.Device
	for _, asked := range op.CdiDevices {
		found := known.Find(asked.Name)
		if len(found) == 0 && !asked.Optional {
			err := fmt.Errorf("required device %q is not registered: %s", asked.Name, where)
			return nil, errors.Join(err, known.Broken())
		}
		if len(found) == 0 {
			fmt.Fprintf(job.Log(2), "the device %q is not registered, and the step goes without\n", asked.Name)
		}
		for _, d := range found {
			if err := w.entitledTo(w.of(job), asked.Name, d); err != nil {
				return nil, err
			}
			if what := unsupported(d); what != "" {
				return nil, fmt.Errorf("the device %s (%s) needs %s, which kiln does not set up", d.Name, d.File, what)
			}
			if !slices.Contains(out, d) {
				out = append(out, d)
			}
		}
	}
	return out, nil
}

func unsupported(d *cdi.Device) string {
	if what := d.Edits.Unsupported(); what != "" {
		return what
	}
	return d.Common.Unsupported()
}

// Devices gives the devices of this machine, by name, with Allowed as this worker
// has it. They are looked up anew each time.
func (w *Worker) Devices() ([]cdi.Device, error) {
	known, err := cdi.Read(w.deviceDirs...)
	if err != nil {
		return nil, err
	}
	var out []cdi.Device
	for _, d := range known.All() {
		device := *d
		device.Allowed = w.allowsDevice(d)
		out = append(out, device)
	}
	return out, nil
}

// allowsDevice reports whether every build may have a device.
func (w *Worker) allowsDevice(d *cdi.Device) bool {
	return d.Allowed || slices.Contains(w.devicesAllowed, d.Name) || slices.Contains(w.devicesAllowed, d.Kind())
}

// addDevices puts what devices need into a process.
func addDevices(spec *executor.Spec, devices []*cdi.Device) error {
	common := map[string]bool{} // files whose own edits are in
	for _, d := range devices {
		edits := []cdi.Edits{d.Edits}
		if !common[d.File] {
			common[d.File] = true
			edits = append(edits, d.Common)
		}
		for _, e := range edits {
			if err := addEdits(spec, e); err != nil {
				return fmt.Errorf("the device %s (%s): %w", d.Name, d.File, err)
			}
		}
	}
	return nil
}

func addEdits(spec *executor.Spec, e cdi.Edits) error {
	for _, n := range e.Nodes {
		d, err := deviceOf(n)
		if err != nil {
			return err
		}
		spec.Devices = slices.DeleteFunc(spec.Devices, func(o executor.Device) bool { return o.Path == d.Path })
		spec.Devices = append(spec.Devices, d)
	}
	for _, m := range e.Mounts {
		spec.Mounts = append(spec.Mounts, executor.Mount{
			Dest: m.ContainerPath, Source: m.HostPath,
			ReadOnly: slices.Contains(m.Options, "ro"),
		})
	}
	spec.Env = append(spec.Env, e.Env...)
	for _, g := range e.Groups {
		if g != 0 { // to be in root's group is nothing that a device needs
			spec.Groups = append(spec.Groups, g)
		}
	}
	for _, h := range e.Hooks {
		addHook(spec, h)
	}
	return nil
}

// deviceOf fills in from the host's node what the specification does not say.
func deviceOf(n cdi.Node) (executor.Device, error) {
	d := executor.Device{
		Path: path.Clean(n.Path), HostPath: n.HostPath, Block: n.Type == "b", Major: uint32(n.Major), Minor: uint32(n.Minor),
		Mode: 0o666, UID: n.UID, GID: n.GID, Access: n.Permissions,
	}
	if d.HostPath == "" {
		d.HostPath = n.Path
	}
	if d.Access == "" {
		d.Access = "rwm"
	}
	complete := n.Type != "" && n.Major != 0
	var st unix.Stat_t
	err := unix.Lstat(d.HostPath, &st)
	kind := st.Mode & unix.S_IFMT
	switch {
	case err != nil && !complete:
		return d, fmt.Errorf("the host's node: %w", &os.PathError{Op: "lstat", Path: d.HostPath, Err: err})
	case err == nil && kind != unix.S_IFBLK && kind != unix.S_IFCHR:
		return d, fmt.Errorf("%s is no device node", d.HostPath)
	case err == nil && n.Type != "" && d.Block != (kind == unix.S_IFBLK):
		return d, fmt.Errorf("%s is a device of another kind than %q", d.HostPath, n.Type)
	case err == nil:
		d.Mode = os.FileMode(st.Mode & 0o777)
		if !complete {
			d.Block = kind == unix.S_IFBLK
			d.Major, d.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
		}
	}
	if n.Mode != nil {
		d.Mode = os.FileMode(*n.Mode & 0o777)
	}
	return d, nil
}

func addHook(spec *executor.Spec, h cdi.Hook) {
	if spec.Hooks == nil {
		spec.Hooks = &specs.Hooks{}
	}
	hook := specs.Hook{Path: h.Path, Args: h.Args, Env: h.Env, Timeout: h.Timeout}
	lists := map[string]*[]specs.Hook{
		"prestart":        &spec.Hooks.Prestart, //lint:ignore SA1019 specifications still have them
		"createRuntime":   &spec.Hooks.CreateRuntime,
		"createContainer": &spec.Hooks.CreateContainer,
		"startContainer":  &spec.Hooks.StartContainer,
		"poststart":       &spec.Hooks.Poststart,
		"poststop":        &spec.Hooks.Poststop,
	}
	list := lists[h.Name]
	*list = append(*list, hook)
}
