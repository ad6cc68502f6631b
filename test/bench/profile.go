package main

import (
	"os"
	"runtime"
	"runtime/pprof"
)

// profile begins the profile that BENCH_PROFILE names ("cpu", "allocs", "block",
// "mutex"), which the returned function writes to the file BENCH_PROFILE_FILE.
func profile() (stop func(), err error) {
	kind, path := os.Getenv("BENCH_PROFILE"), os.Getenv("BENCH_PROFILE_FILE")
	if kind == "" {
		return func() {}, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "cpu":
		if err := pprof.StartCPUProfile(f); err != nil {
			return nil, err
		}
		return func() { pprof.StopCPUProfile(); f.Close() }, nil
	case "block":
		runtime.SetBlockProfileRate(1000)
	case "mutex":
		runtime.SetMutexProfileFraction(5)
	case "allocs":
		runtime.MemProfileRate = 4096
	}
	return func() { pprof.Lookup(kind).WriteTo(f, 0); f.Close() }, nil
}
