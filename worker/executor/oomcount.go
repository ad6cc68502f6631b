package executor

import (
	"os"
	"strconv"
	"strings"
)

// oomKills counts the processes that the kernel of this machine has killed for
// memory. It stands in for a step's own count where no cgroup keeps one: when it
// has grown while a step ran that was killed, memory was the reason.
func oomKills() uint64 {
	b, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "\noom_kill ")
	value, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
