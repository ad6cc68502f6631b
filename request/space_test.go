package request

import "testing"

func TestDiskSpace(t *testing.T) {
	for _, row := range []struct {
		text string
		want DiskSpace
		ok   bool
	}{
		{"10GB", DiskSpace{Bytes: 10 << 30}, true},
		{"1.5k", DiskSpace{Bytes: 1536}, true},
		{`"512mb"`, DiskSpace{Bytes: 512 << 20}, true}, // as a configuration file has it
		{"1000", DiskSpace{Bytes: 1000}, true},
		{"20%", DiskSpace{Percent: 20}, true},
		{"0", DiskSpace{}, true}, // no bound
		{"101%", DiskSpace{}, false},
		{"-1%", DiskSpace{}, false},
		{"-5MB", DiskSpace{}, false},
		{"much", DiskSpace{}, false},
		{"", DiskSpace{}, false},
	} {
		var got DiskSpace
		if err := got.UnmarshalText([]byte(row.text)); (err == nil) != row.ok || got != row.want {
			t.Errorf("%q: got %+v, %v, want %+v", row.text, got, err, row.want)
		}
	}
	if got := (DiskSpace{Percent: 20}).Of(1000); got != 200 {
		t.Errorf("a fifth of 1000 is %d", got)
	}
}

func FuzzDiskSpace(f *testing.F) {
	f.Add("10GB")
	f.Add("20%")
	f.Fuzz(func(t *testing.T, s string) {
		var d DiskSpace
		if err := d.UnmarshalText([]byte(s)); err == nil && (d.Bytes < 0 || d.Percent < 0 || d.Percent > 100 || d.Of(1<<50) < 0) {
			t.Errorf("%q is %+v", s, d)
		}
	})
}
