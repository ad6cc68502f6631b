package usage

import (
	"encoding/json"
	"slices"
	"testing"
	"time"
)

// TestSeries takes far more samples than there is room for: those that stay are spread
// over all of the time, and there is one of the end.
func TestSeries(t *testing.T) {
	n := 0
	s := Begin(time.Minute, 10, func(time.Time) int { n++; return n })
	for range 100 {
		s.tick()
	}
	got := s.Now()
	s.End()
	if len(got) > 11 || !slices.IsSorted(got) || got[len(got)-1] != 101 {
		t.Errorf("of 101 samples %v are there", got)
	}
	if s.interval < 64*time.Minute {
		t.Errorf("after 100 samples the next comes in %v", s.interval)
	}
	s.tick()
	if again := s.Now(); len(again) != len(got) {
		t.Errorf("a series that has ended has samples %v", again)
	}
}

// TestSystem reads this machine, and compares two moments.
func TestSystem(t *testing.T) {
	before := ReadSystem(time.Now())
	if before.CPU == nil || before.Processes == nil || before.Processes.Created == 0 || before.Memory == nil || before.Memory.Total == nil {
		t.Fatalf("this machine is %+v", before)
	}
	since := ReadSystemCPU().Since(before.CPU)
	if since.User < 0 || since.System < 0 || since.User > before.CPU.User {
		t.Errorf("since a moment ago the CPUs did %+v, up to then %+v", since, before.CPU)
	}
	if since.Since(nil) != nil {
		t.Error("a difference to nothing is something")
	}
	data, err := json.Marshal(SystemCPU{User: 1.23456, Idle: 0.1 + 0.2})
	if want := `{"user":1.235,"nice":0,"system":0,"idle":0.3,"iowait":0,"irq":0,"softirq":0,"steal":0,"guest":0,"guestNice":0}`; err != nil || string(data) != want {
		t.Errorf("it is written as %s, %v, want %s", data, err, want)
	}
}
