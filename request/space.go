package request

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/docker/go-units"
)

// DiskSpace is a number of bytes, or a share of the disk; the zero DiskSpace is no bound.
type DiskSpace struct {
	Bytes   int64
	Percent int64 // of the disk, where Bytes is 0
}

// UnmarshalText reads "10GB", whose units are powers of 1,024, "20%", or bytes.
func (d *DiskSpace) UnmarshalText(text []byte) error {
	s := strings.Trim(string(text), `"`)
	if share, ok := strings.CutSuffix(s, "%"); ok {
		n, err := strconv.ParseInt(share, 10, 64)
		if err != nil || n < 0 || n > 100 {
			return fmt.Errorf("%q is no share of the disk; 20%% is one", s)
		}
		*d = DiskSpace{Percent: n}
		return nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is no size; 10GB is one, and so is 20%% of the disk", s)
	}
	*d = DiskSpace{Bytes: n}
	return nil
}

// Of gives the bytes that d is on a disk of that size.
func (d DiskSpace) Of(disk int64) int64 {
	if d.Bytes != 0 || d.Percent == 0 {
		return d.Bytes
	}
	return max(1, disk/100*d.Percent)
}
