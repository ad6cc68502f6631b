package userns

import (
	"bufio"
	"os"
	"strconv"
	"strings"
)

// IDs says how many user ids this process can give to files, and whether it is in
// a user namespace below the machine's own.
func IDs() (count int64, nested bool) {
	f, err := os.Open("/proc/self/uid_map")
	if err != nil {
		return 1 << 32, false // a kernel without user namespaces
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) != 3 {
			continue
		}
		n, err := strconv.ParseInt(words[2], 10, 64)
		if err != nil {
			continue
		}
		nested = nested || words[1] != "0"
		count += n
	}
	return count, nested || count < 1<<32-1
}
