package main

import "testing"

func TestGCPercent(t *testing.T) {
	const mb = 1 << 20
	last := uint64(0)
	for _, row := range []struct {
		live uint64
		want int
	}{
		{0, 800},       // 4 MB is the least that Go counts with
		{8 * mb, 300},  // up to the floor
		{16 * mb, 100}, // twice the live heap
		{32 * mb, 100}, // the last at which it is
		{128 * mb, 50}, // twice the root
		{512 * mb, 25}, // four times
		{8192 * mb, 6}, // never none
	} {
		if got := gcPercent(row.live); got != row.want {
			t.Errorf("gcPercent(%d MB) = %d, want %d", row.live/mb, got, row.want)
		}
		if limit := row.live + row.live*uint64(gcPercent(row.live))/100; limit < last {
			t.Errorf("a live heap of %d MB may grow to less than a smaller one", row.live/mb)
		} else {
			last = limit
		}
	}
}
