package main

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// heapFloor is the size up to which the heap grows before it is collected. A build
// that finds everything cached stays below it and never collects; collecting from
// Go's four megabytes on took a fifth of its time.
const heapFloor = 32 << 20

// setHeapFloor makes the collector wait for heapFloor, and behave as ever above
// it. GOGC, where it is set, has the word.
func setHeapFloor() {
	if os.Getenv("GOGC") != "" {
		return
	}
	debug.SetGCPercent(heapFloor / (4 << 20) * 100) // the runtime's own floor is 4 MB at 100
	afterCollection()
}

// afterCollection has the share set anew after every collection.
func afterCollection() {
	type sentinel struct{ _ [16]byte }
	s := new(sentinel)
	runtime.AddCleanup(s, func(struct{}) {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		debug.SetGCPercent(gcPercent(live[0].Value.Uint64()))
		afterCollection()
	}, struct{}{})
}

// gcPercent gives how much the heap may grow above what lives in it: what is left of
// the floor; above it, the usual 100%; and of a large heap a smaller share, which
// goes down with the root of its size. So the work of the collector and the memory
// that it leaves unused grow at the same rate: Kirisame et al., "Optimal heap limits
// for reducing browser memory use", 2022.
func gcPercent(live uint64) int {
	switch {
	case live < heapFloor/2:
		return int((heapFloor - live) * 100 / max(live, 4<<20))
	case live <= heapFloor:
		return 100
	}
	return int(100 * math.Sqrt(heapFloor/float64(live)))
}
