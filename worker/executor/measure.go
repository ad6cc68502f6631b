package executor

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/worker/usage"
)

// measure begins to measure what the process will use. done is called when it has
// ended, and its cgroup is still there.
func (b *box) measure() (done func()) {
	m := b.s.Measure
	if m == nil {
		return func() {}
	}
	before := usage.ReadSystemCPU()
	var series *usage.Series[*usage.Sample]
	if b.group != nil {
		series = usage.Begin(usage.Interval, usage.StepBound, b.group.Usage)
	}
	return func() {
		var taken []*usage.Sample
		if series != nil {
			taken = series.Now()
			series.End()
		}
		if b.used == nil {
			return
		}
		if len(taken) == 0 {
			taken = []*usage.Sample{{Timestamp: time.Now()}}
		}
		if last := taken[len(taken)-1]; last.CPU == nil {
			last.CPU = cpuOf(b.used)
		}
		m.Used(&usage.Samples{Samples: taken, SystemCPU: usage.ReadSystemCPU().Since(before)})
	}
}

// cpuOf gives the CPU time of a process and of those that it has waited for, where no
// cgroup counts that of them all.
func cpuOf(used *unix.Rusage) *usage.CPU {
	user, system := uint64(used.Utime.Nano()), uint64(used.Stime.Nano())
	both := user + system
	return &usage.CPU{UsageNanos: &both, UserNanos: &user, SystemNanos: &system}
}
