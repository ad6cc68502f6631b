package main

import (
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

// afterCollection has the share set anew after every collection: what is left
// of the floor above the live heap, and no less than the usual 100%.
func afterCollection() {
	type sentinel struct{ _ [16]byte }
	s := new(sentinel)
	runtime.AddCleanup(s, func(struct{}) {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		percent := 100
		if n := live[0].Value.Uint64(); n < heapFloor/2 {
			percent = int((heapFloor - n) * 100 / max(n, 4<<20))
		}
		debug.SetGCPercent(percent)
		afterCollection()
	}, struct{}{})
}
