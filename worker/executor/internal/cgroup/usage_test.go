package cgroup

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestUsage reads groups as the kernel shows them: whole ones of both forms, ones of
// which parts are missing, and ones that say what nobody knows.
func TestUsage(t *testing.T) {
	pressure := "some avg10=1.50 avg60=0.25 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n"
	const waited = `{"some":{"avg10":1.5,"avg60":0.25,"avg300":0,"total":12},"full":{"avg10":0,"avg60":0,"avg300":0,"total":3}}`
	for _, test := range []struct {
		name    string
		unified map[string]string
		trees   map[string]map[string]string
		want    string
	}{
		{"nothing", nil, nil, ``},
		{"no controllers", map[string]string{"cpu.stat": "usage_usec 30\nuser_usec 10\nsystem_usec 20\n", "io.pressure": pressure}, nil,
			`,"cpuStat":{"usageNanos":30000,"userNanos":10000,"systemNanos":20000},"ioStat":{"pressure":` + waited + `}`},
		{"the unified tree", map[string]string{
			"cpu.stat":     "usage_usec 1\nuser_usec 1\nsystem_usec 0\nnr_periods 4\nnr_throttled 2\nthrottled_usec 9\nnew 1\n",
			"cpu.pressure": pressure,
			"memory.stat":  "anon 4096\nfile 8192\nkernel_stack 1\npagetables 2\nsock 3\nshmem 4\nfile_mapped 5\nfile_dirty 6\nfile_writeback 7\nslab 8\npgscan 9\npgsteal 10\npgfault 11\npgmajfault 12\n",
			"memory.peak":  "9999\n", "memory.swap.current": "0\n", "memory.events": "low 0\nhigh 1\nmax 2\noom 3\noom_kill 1\n",
			"io.stat":      "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=5 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n",
			"pids.current": "3\n",
		}, nil, `,"cpuStat":{"usageNanos":1000,"userNanos":1000,"systemNanos":0,"nrPeriods":4,"nrThrottled":2,"throttledNanos":9000,"pressure":` + waited + `}` +
			`,"memoryStat":{"swapBytes":0,"anon":4096,"file":8192,"kernelStack":1,"pageTables":2,"sock":3,"shmem":4,"fileMapped":5,"fileDirty":6,` +
			`"fileWriteback":7,"slab":8,"pgscan":9,"pgsteal":10,"pgfault":11,"pgmajfault":12,"peak":9999,"highEvents":1,"maxEvents":2,"oomEvents":3,"oomKillEvents":1}` +
			`,"ioStat":{"readBytes":15,"writeBytes":20,"discardBytes":0,"readIOs":2,"writeIOs":2,"discardIOs":0},"pidsStat":{"current":3}`},
		{"older trees", nil, map[string]map[string]string{
			"cpuacct": {"cpuacct.usage": "50\n", "cpuacct.usage_user": "20\n", "cpuacct.usage_sys": "30\n"},
			"memory":  {"memory.stat": "rss 1\ntotal_rss 4096\ntotal_cache 8192\n", "memory.max_usage_in_bytes": "9999\n", "memory.oom_control": "oom_kill_disable 0\noom_kill 2\n"},
			"blkio":   {"blkio.throttle.io_service_bytes_recursive": "8:0 Read 10\n8:0 Write 20\n8:16 Read 5\n8:0 Total 30\nTotal 35\n"},
			"pids":    {"pids.current": "1\n"},
		}, `,"cpuStat":{"usageNanos":50,"userNanos":20,"systemNanos":30},"memoryStat":{"anon":4096,"file":8192,"peak":9999,"oomKillEvents":2}` +
			`,"ioStat":{"readBytes":15,"writeBytes":20},"pidsStat":{"current":1}`},
		{"what nobody knows", map[string]string{"cpu.stat": "usage_usec\n\nuser_usec x\nsystem_usec -1\n", "cpu.pressure": "some\nfull avg10 avg60=x total=\n\n", "memory.stat": "", "io.stat": "8:0\nrbytes\n", "pids.current": "max\n"}, nil,
			`,"cpuStat":{"pressure":{"some":{"avg10":null,"avg60":null,"avg300":null,"total":null},"full":{"avg10":null,"avg60":null,"avg300":null,"total":null}}},"memoryStat":{},"ioStat":{}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			fill := func(files map[string]string) string {
				dir := t.TempDir()
				for name, text := range files {
					if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				return dir
			}
			g := &Group{trees: map[string]string{}}
			if test.unified != nil {
				g.unified = fill(test.unified)
			}
			for c, files := range test.trees {
				g.trees[c] = fill(files)
			}
			got, err := json.Marshal(g.Usage(time.Unix(0, 0).UTC()))
			if want := `{"timestamp":"1970-01-01T00:00:00Z"` + test.want + `}`; err != nil || string(got) != want {
				t.Errorf("it is %s, %v, want\n%s", got, err, want)
			}
		})
	}
}
