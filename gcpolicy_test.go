package kiln

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
)

const disk = 1000 << 30

func TestGCConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kiln.toml")
	text := `
[worker.oci]
gc = true
reservedSpace = "30%"
minFreeSpace = 1000000
[[worker.oci.gcpolicy]]
keepDuration = "48h"
maxUsedSpace = "512MB"
filters = ["type==source.local", "type==exec.cachemount"]
[[worker.oci.gcpolicy]]
all = true
keepDuration = 172800
keepBytes = "1gb"
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	gc := c.Worker.OCI.GCConfig
	if gc.GC == nil || !*gc.GC || gc.ReservedSpace.Percent != 30 || gc.MinFreeSpace.Bytes != 1_000_000 {
		t.Errorf("got %+v", gc)
	}
	p := gc.policies(disk)
	if len(p) != 2 {
		t.Fatalf("got policies %+v, want the two that are written", p)
	}
	for i, want := range []cache.PruneOptions{
		{KeepDuration: 48 * time.Hour, MaxUsed: 512 << 20},
		{All: true, KeepDuration: 48 * time.Hour, Reserved: 1 << 30},
	} {
		got, err := p[i].options(disk)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			for kind, want := range map[string]bool{cache.KindMount: true, cache.KindRegular: false} {
				if got.Filter(cache.Usage{Kind: kind}) != want {
					t.Errorf("the filter says %v of %s", !want, kind)
				}
			}
		}
		if got.Filter = nil; got.All != want.All || got.KeepDuration != want.KeepDuration || got.MaxUsed != want.MaxUsed || got.Reserved != want.Reserved {
			t.Errorf("policy %d: got %+v, want %+v", i, got, want)
		}
	}
}

func TestBadGCConfig(t *testing.T) {
	for _, line := range []string{
		`maxUsedSpace = "much"`,
		`maxUsedSpace = "-1GB"`,
		`minFreeSpace = "120%"`,
		`gcpolicy = [{keepDuration = "two days"}]`,
		`gcpolicy = [{filters = ["type=regular"]}]`,
		`gcpolicy = [{filters = ["type==regular"]}, {filters = ["type==regular,kind==x"]}]`,
		`gcpolicy = [{filters = ["type~=(", "type==regular"]}]`,
		`gcpolicy = [{filters = ["shared==false"]}]`,
	} {
		path := filepath.Join(t.TempDir(), "kiln.toml")
		if err := os.WriteFile(path, []byte("[worker.oci]\n"+line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := loadConfig(path); err == nil {
			t.Errorf("%s: got %+v, want an error", line, c.Worker.OCI.GCConfig)
		}
	}
}

func TestGCFilters(t *testing.T) {
	p := GCPolicy{Filters: []string{
		"type==source.local,inuse", "!shared", `description~="RUN a,b=c"`, "description~=/(RUN|COPY) /,type!=internal", `description~="\\("`, "mutable,parents~=|^a,b|",
	}}
	for _, text := range p.Filters {
		err := GCPolicy{Filters: []string{text}}.checkFilters()
		if _, perr := UsageFilter([]string{text}); (err == nil) != (perr == nil) {
			t.Errorf("%s: got %v, and containerd says %v", text, err, perr)
		}
	}
}

func TestDefaultPolicies(t *testing.T) {
	off := false
	if p := (GCConfig{GC: &off}).policies(disk); p != nil {
		t.Errorf("switched off: %+v", p)
	}
	for _, row := range []struct {
		config                 GCConfig
		disk                   int64
		reserved, max, minFree int64
	}{
		{GCConfig{}, disk, 10e9, 100e9, disk / 5}, // the largest that is kept
		{GCConfig{}, 1 << 30, 1 << 30 / 10, 1 << 30 / 10 * 8, 1 << 30 / 5},
		{GCConfig{MaxUsedSpace: DiskSpace{Bytes: 5}}, disk, 0, 5, 0}, // one bound says all of them
		{GCConfig{KeepStorage: DiskSpace{Percent: 50}}, disk, disk / 2, 0, 0},
	} {
		p := row.config.policies(row.disk)
		if len(p) != 4 || !p[3].All || p[1].KeepDuration.Duration != 60*24*time.Hour {
			t.Fatalf("got %+v", p)
		}
		o, err := p[2].options(row.disk)
		if err != nil {
			t.Fatal(err)
		}
		near := func(a, b int64) bool { return a-b < 100 && b-a < 100 }
		if !near(o.Reserved, row.reserved) || !near(o.MaxUsed, row.max) || !near(o.MinFree, row.minFree) {
			t.Errorf("%+v: got %+v, want %+v", row.config, o, row)
		}
	}
}
