// Package usage measures what processes, and the machine, use while they run: CPU
// time, memory, disks. Its types are written as JSON in BuildKit's form, which is
// where clients know them from. What cannot be had of a machine is nil.
//
// A Series takes samples of something until it ends.
package usage

import (
	"sync"
	"time"
)

// Samples are what a step used.
type Samples struct {
	Samples []*Sample `json:"samples,omitempty"`
	// SystemCPU is what all of the machine's CPUs did from the step's beginning to its end.
	SystemCPU *SystemCPU `json:"sysCPUStat,omitempty"`
}

// Sample is what a step has used up to a moment, the last of them its end.
type Sample struct {
	Timestamp time.Time `json:"timestamp"`
	CPU       *CPU      `json:"cpuStat,omitempty"`
	Memory    *Memory   `json:"memoryStat,omitempty"`
	IO        *IO       `json:"ioStat,omitempty"`
	PIDs      *PIDs     `json:"pidsStat,omitempty"`
}

// CPU is time on the CPUs.
type CPU struct {
	UsageNanos     *uint64   `json:"usageNanos,omitempty"`
	UserNanos      *uint64   `json:"userNanos,omitempty"`
	SystemNanos    *uint64   `json:"systemNanos,omitempty"`
	Periods        *uint64   `json:"nrPeriods,omitempty"`
	Throttled      *uint64   `json:"nrThrottled,omitempty"`
	ThrottledNanos *uint64   `json:"throttledNanos,omitempty"`
	Pressure       *Pressure `json:"pressure,omitempty"`
}

// Memory is memory of a step's processes, in bytes, and what happened to it.
type Memory struct {
	Swap          *uint64   `json:"swapBytes,omitempty"`
	Anonymous     *uint64   `json:"anon,omitempty"`
	File          *uint64   `json:"file,omitempty"`
	KernelStack   *uint64   `json:"kernelStack,omitempty"`
	PageTables    *uint64   `json:"pageTables,omitempty"`
	Sock          *uint64   `json:"sock,omitempty"`
	Shmem         *uint64   `json:"shmem,omitempty"`
	FileMapped    *uint64   `json:"fileMapped,omitempty"`
	FileDirty     *uint64   `json:"fileDirty,omitempty"`
	FileWriteback *uint64   `json:"fileWriteback,omitempty"`
	Slab          *uint64   `json:"slab,omitempty"`
	PagesScanned  *uint64   `json:"pgscan,omitempty"`
	PagesStolen   *uint64   `json:"pgsteal,omitempty"`
	Faults        *uint64   `json:"pgfault,omitempty"`
	MajorFaults   *uint64   `json:"pgmajfault,omitempty"`
	Peak          *uint64   `json:"peak,omitempty"`
	LowEvents     uint64    `json:"lowEvents,omitempty"`
	HighEvents    uint64    `json:"highEvents,omitempty"`
	MaxEvents     uint64    `json:"maxEvents,omitempty"`
	OOMEvents     uint64    `json:"oomEvents,omitempty"`
	OOMKillEvents uint64    `json:"oomKillEvents,omitempty"`
	Pressure      *Pressure `json:"pressure,omitempty"`
}

// IO is what went to disks, and came from them.
type IO struct {
	ReadBytes    *uint64   `json:"readBytes,omitempty"`
	WriteBytes   *uint64   `json:"writeBytes,omitempty"`
	DiscardBytes *uint64   `json:"discardBytes,omitempty"`
	Reads        *uint64   `json:"readIOs,omitempty"`
	Writes       *uint64   `json:"writeIOs,omitempty"`
	Discards     *uint64   `json:"discardIOs,omitempty"`
	Pressure     *Pressure `json:"pressure,omitempty"`
}

// PIDs is how many processes there are.
type PIDs struct {
	Current *uint64 `json:"current,omitempty"`
}

// Pressure is for which share of the time some processes, or all, waited for something.
type Pressure struct {
	Some *PressureValues `json:"some"`
	Full *PressureValues `json:"full"`
}

// PressureValues are percents of the last 10, 60 and 300 seconds, and microseconds in all.
type PressureValues struct {
	Avg10  *float64 `json:"avg10"`
	Avg60  *float64 `json:"avg60"`
	Avg300 *float64 `json:"avg300"`
	Total  *uint64  `json:"total"`
}

// A Series takes samples of something at intervals that grow, so that there are a
// bounded number of them however long it goes on.
type Series[T any] struct {
	sample   func(at time.Time) T
	interval time.Duration
	bound    int
	timer    *time.Timer

	mu      sync.Mutex // guards what is below
	samples []T
	ended   bool
}

// Interval is from sample to sample at first. It is BuildKit's, as are the bounds.
const (
	Interval    = 2 * time.Second
	StepBound   = 10
	SystemBound = 20
)

// Begin begins a series, the first sample of which is taken after the interval.
func Begin[T any](interval time.Duration, bound int, sample func(at time.Time) T) *Series[T] {
	s := &Series[T]{sample: sample, interval: interval, bound: bound}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(interval, s.tick)
	return s
}

func (s *Series[T]) tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.samples = append(s.samples, s.sample(time.Now()))
	if len(s.samples) >= s.bound {
		for i := range s.samples[:len(s.samples)/2] {
			s.samples[i] = s.samples[2*i+1]
		}
		s.samples = s.samples[:len(s.samples)/2]
		s.interval *= 2
	}
	s.timer.Reset(s.interval)
}

// Now gives the samples up to now, with one of this moment.
func (s *Series[T]) Now() []T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(s.samples[:len(s.samples):len(s.samples)], s.sample(time.Now()))
}

// End ends the series; it waits for a sample that is being taken. It may be called again.
func (s *Series[T]) End() {
	s.timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}
