package worker

import (
	"fmt"
	"slices"
	"sync"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/cdi"
)

// What a build may be granted, as clients name it.
const (
	grantInsecure = "security.insecure"
	grantHost     = "network.host"
	// grantDevice is all devices; one has the name "device=NAME".
	grantDevice = "device"
)

// Entitled checks that a build was granted all that steps of its graphs ask for, those
// whose results are known too: a cache must not let a build through that would fail
// without one. The error is a *solver.VertexError.
func (w *Worker) Entitled(id solver.SessionID, edges ...llb.Edge) error {
	edges = slices.DeleteFunc(slices.Clone(edges), func(e llb.Edge) bool { return e.IsScratch() || !e.Vertex.Privileged() })
	if len(edges) == 0 {
		return nil
	}
	w.mu.Lock()
	all := w.sessions
	w.mu.Unlock()
	i := slices.IndexFunc(all, func(s *session) bool { return s.id == id })
	if i < 0 {
		return ErrSessionEnded
	}
	known := sync.OnceValues(func() (*cdi.Specs, error) { return cdi.Read(w.deviceDirs...) })
	for _, v := range llb.Walk(edges...) {
		op := v.Op().GetExec()
		if op == nil {
			continue
		}
		err := entitled(all[i:i+1], op)
		if err == nil && len(op.CdiDevices) > 0 {
			err = w.entitledToAll(all[i:i+1], op.CdiDevices, known)
		}
		if err != nil {
			return &solver.VertexError{Vertex: v.Digest(), Name: v.Name(), Locations: v.Meta().Locations, Err: err}
		}
	}
	return nil
}

// entitled checks that one of the sessions was granted what a step asks for besides
// devices. A step may be shared by builds: one that was granted it runs it for all.
func entitled(by []*session, op *pb.ExecOp) error {
	var need []string
	if op.Security == pb.SecurityMode_INSECURE {
		need = append(need, grantInsecure)
	}
	if llb.Unproxied(op.Network) == pb.NetMode_HOST {
		need = append(need, grantHost)
	}
	for _, n := range need {
		if !slices.ContainsFunc(by, func(s *session) bool { return s.Entitlements[n] }) {
			return fmt.Errorf("%s is not allowed: allow it by --allow %[1]s", n)
		}
	}
	return nil
}

// entitledToAll checks it of the devices that a step asks for, as far as they are known.
func (w *Worker) entitledToAll(by []*session, devices []*pb.CDIDevice, known func() (*cdi.Specs, error)) error {
	all, err := known()
	if err != nil {
		return err
	}
	for _, asked := range devices {
		for _, d := range all.Find(asked.Name) {
			if err := w.entitledTo(by, asked.Name, d); err != nil {
				return err
			}
		}
	}
	return nil
}

// entitledTo checks that everybody may have a device, or one of the sessions was granted
// it: as all are, by the name that the step has for it, by its own, or by its kind.
func (w *Worker) entitledTo(by []*session, asked string, d *cdi.Device) error {
	if w.allowsDevice(d) {
		return nil
	}
	for _, s := range by {
		for _, name := range []string{asked, d.Name, d.Kind()} {
			if s.Entitlements[grantDevice] || s.Entitlements[grantDevice+"="+name] {
				return nil
			}
		}
	}
	return fmt.Errorf("the device %s is requested by the build but not allowed: allow it by --allow device, or --allow device=%s", d.Name, d.Name)
}
