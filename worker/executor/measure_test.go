package executor

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/worker/executor/internal/cgroup"
	"github.com/kiln-build/kiln/worker/usage"
)

// TestMeasure has a process say what it has used, and compares that with what was
// measured: with the machine's cgroups, and without any.
func TestMeasure(t *testing.T) {
	const size = 8 << 20
	// Fields 14 and 15 are its ticks, of which the kernel shows whole ones.
	script := fmt.Sprintf(`i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done
head -c %d /dev/zero > /dev/shm/f
set -- $(cat /proc/$$/stat); echo ${14} ${15}`, size)
	for _, test := range []struct {
		name    string
		cgroups bool
		fully   bool
	}{{"as it comes", true, false}, {"fully", true, true}, {"without cgroups", false, true}} {
		t.Run(test.name, func(t *testing.T) {
			n := newNative(t)
			if !test.cgroups {
				defer func(m *cgroup.Manager) { n.cgroups = m }(n.cgroups)
				n.cgroups = nil
			}
			s := shell(t, script)
			var got []*usage.Samples
			s.Measure = &Measure{Fully: test.fully, Used: func(u *usage.Samples) { got = append(got, u) }}
			out, err := output(t, n, s)
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if len(got) != 1 || len(got[0].Samples) == 0 {
				t.Fatalf("it is told %v", got)
			}
			var user, system uint64
			if _, err := fmt.Sscan(strings.TrimSpace(out), &user, &system); err != nil {
				t.Fatalf("the process says %q: %v", out, err)
			}
			last := got[0].Samples[len(got[0].Samples)-1]
			const tick = 10_000_000
			if c := last.CPU; c == nil || c.UsageNanos == nil || *c.UsageNanos+tick < (user+system)*tick || *c.UsageNanos == 0 {
				t.Errorf("its CPU time is %+v, and it says itself %d and %d ticks", c, user, system)
			}
			if got[0].SystemCPU == nil {
				t.Error("what the machine's CPUs did meanwhile is missing")
			}
			if m := last.Memory; m != nil && m.Peak != nil && *m.Peak < size {
				t.Errorf("it had %d bytes at once, and %d were measured", size, *m.Peak)
			}
			if p := last.PIDs; p != nil && p.Current != nil && *p.Current != 0 {
				t.Errorf("%d of its processes are there behind its end", *p.Current)
			}
		})
	}
}

// TestMeasureNothing has a process fail to begin, which uses nothing.
func TestMeasureNothing(t *testing.T) {
	s := shell(t, "true")
	s.Args = []string{"/no/such"}
	s.Measure = &Measure{Used: func(u *usage.Samples) { t.Errorf("it is told %v", u) }}
	if _, err := output(t, newNative(t), s); err == nil {
		t.Error("it began")
	}
}
