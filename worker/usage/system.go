package usage

import (
	"encoding/json"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
)

// System is what the machine does at a moment.
type System struct {
	Timestamp      time.Time     `json:"timestamp"`
	CPU            *SystemCPU    `json:"cpuStat,omitempty"`
	Processes      *Processes    `json:"procStat,omitempty"`
	Memory         *SystemMemory `json:"memoryStat,omitempty"`
	CPUPressure    *Pressure     `json:"cpuPressure,omitempty"`
	MemoryPressure *Pressure     `json:"memoryPressure,omitempty"`
	IOPressure     *Pressure     `json:"ioPressure,omitempty"`
}

// SystemCPU is what all CPUs have done since the machine was started, in seconds.
type SystemCPU struct {
	User      float64 `json:"user"`
	Nice      float64 `json:"nice"`
	System    float64 `json:"system"`
	Idle      float64 `json:"idle"`
	Iowait    float64 `json:"iowait"`
	IRQ       float64 `json:"irq"`
	SoftIRQ   float64 `json:"softirq"`
	Steal     float64 `json:"steal"`
	Guest     float64 `json:"guest"`
	GuestNice float64 `json:"guestNice"`
}

// MarshalJSON writes thousandths of seconds: the kernel counts hundredths.
func (c SystemCPU) MarshalJSON() ([]byte, error) {
	type plain SystemCPU
	for _, v := range c.values() {
		*v = math.Round(*v*1000) / 1000
	}
	return json.Marshal(plain(c))
}

// values gives the fields, in the order in which the kernel has them.
func (c *SystemCPU) values() []*float64 {
	return []*float64{&c.User, &c.Nice, &c.System, &c.Idle, &c.Iowait, &c.IRQ, &c.SoftIRQ, &c.Steal, &c.Guest, &c.GuestNice}
}

// Since gives what was done since an earlier moment; nil where one of both is.
func (c *SystemCPU) Since(before *SystemCPU) *SystemCPU {
	if c == nil || before == nil {
		return nil
	}
	out := *c
	earlier := before.values()
	for i, v := range out.values() {
		*v -= *earlier[i]
	}
	return &out
}

// Processes counts the machine's processes.
type Processes struct {
	ContextSwitches uint64 `json:"contextSwitches"`
	Created         uint64 `json:"processCreated"`
	Running         uint64 `json:"processesRunning"`
}

// SystemMemory is the machine's memory, in KiB as the kernel has it, and BuildKit.
type SystemMemory struct {
	Total     *uint64 `json:"total"`
	Free      *uint64 `json:"free"`
	Available *uint64 `json:"available"`
	Buffers   *uint64 `json:"buffers"`
	Cached    *uint64 `json:"cached"`
	Active    *uint64 `json:"active"`
	Inactive  *uint64 `json:"inactive"`
	Swap      *uint64 `json:"swap"`
	Dirty     *uint64 `json:"dirty"`
	Writeback *uint64 `json:"writeback"`
	Slab      *uint64 `json:"slab"`
}

// ticks is how many of the kernel's ticks make a second, in what it tells programs: on
// all architectures of Linux that Go knows.
const ticks = 100

// ReadSystemCPU reads what the CPUs have done; nil where that cannot be known.
func ReadSystemCPU() *SystemCPU {
	cpu, _ := readStat()
	return cpu
}

func readStat() (*SystemCPU, *Processes) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil, nil
	}
	var cpu *SystemCPU
	p := &Processes{}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "cpu":
			cpu = &SystemCPU{}
			for i, v := range cpu.values() {
				if i+1 < len(f) {
					n, _ := strconv.ParseFloat(f[i+1], 64)
					*v = n / ticks
				}
			}
		case "ctxt":
			p.ContextSwitches, _ = strconv.ParseUint(f[1], 10, 64)
		case "processes":
			p.Created, _ = strconv.ParseUint(f[1], 10, 64)
		case "procs_running":
			p.Running, _ = strconv.ParseUint(f[1], 10, 64)
		}
	}
	return cpu, p
}

// ReadSystem reads what the machine does.
func ReadSystem(at time.Time) *System {
	s := &System{Timestamp: at}
	s.CPU, s.Processes = readStat()
	s.Memory = readMeminfo()
	s.CPUPressure = ReadPressure("/proc/pressure/cpu")
	s.MemoryPressure = ReadPressure("/proc/pressure/memory")
	s.IOPressure = ReadPressure("/proc/pressure/io")
	return s
}

func readMeminfo() *SystemMemory {
	m := &SystemMemory{}
	places := map[string]**uint64{
		"MemTotal:": &m.Total, "MemFree:": &m.Free, "MemAvailable:": &m.Available, "Buffers:": &m.Buffers, "Cached:": &m.Cached,
		"Active:": &m.Active, "Inactive:": &m.Inactive, "SwapTotal:": &m.Swap, "Dirty:": &m.Dirty, "Writeback:": &m.Writeback, "Slab:": &m.Slab,
	}
	if !ReadTable("/proc/meminfo", places, 1) {
		return nil
	}
	return m
}

// ReadTable reads a file of the kernel's with a name and a number in each line, into
// the places of the names that are wanted. The numbers are multiplied by unit. It
// reports whether there is such a file.
func ReadTable(file string, places map[string]**uint64, unit uint64) bool {
	data, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		if place := places[f[0]]; place != nil {
			if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				n *= unit
				*place = &n
			}
		}
	}
	return true
}

// ReadNumber reads a file of the kernel's that holds one number; nil where it cannot.
func ReadNumber(file string) *uint64 {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return nil
	}
	return &n
}

// ReadPressure reads a file of pressures; nil where the kernel keeps none.
func ReadPressure(file string) *Pressure {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	p := &Pressure{}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		v := &PressureValues{}
		for _, pair := range f[1:] {
			name, text, _ := strings.Cut(pair, "=")
			switch name {
			case "avg10":
				v.Avg10 = number(text)
			case "avg60":
				v.Avg60 = number(text)
			case "avg300":
				v.Avg300 = number(text)
			case "total":
				if n, err := strconv.ParseUint(text, 10, 64); err == nil {
					v.Total = &n
				}
			}
		}
		switch f[0] {
		case "some":
			p.Some = v
		case "full":
			p.Full = v
		}
	}
	return p
}

func number(text string) *float64 {
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return nil
	}
	return &n
}
