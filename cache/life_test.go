package cache

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var lifeEach = flag.Bool("life", false, "in TestMonth, a process for each build, as from the command line; takes minutes")

// month is a folder that many builds use, one after the other, in processes of
// their own, and that is to stay below a limit.
type month struct {
	t     testing.TB
	c     *Cache
	clock clock
	dir   string
	limit int64
	opens []time.Duration
	// collections and misses count what happened.
	collections, hits, misses int
}

func (m *month) open() {
	start := time.Now()
	m.c = open(m.t, m.dir, Options{Clock: m.clock.Now, LazyClose: true})
	m.opens = append(m.opens, time.Since(start))
}

// step looks for a record, and makes it where there is none: a layer with a file
// or two, a blob.
func (m *month) step(name string, parent ChainID, bytes int) ChainID {
	c := m.c
	k := Key(sum(name))
	if r, err := c.Lookup(k); err == nil {
		m.hits++
		return r.Outputs[0]
	}
	m.misses++
	// Half of it is what the step before made too.
	id := putChain(m.t, c, parent, map[string]string{
		"own": name + random(uint64(len(m.opens)+m.misses), bytes/2), "common": random(uint64(bytes), bytes/2),
	})
	if err := c.Store(Record{Name: name, Outputs: []ChainID{id}, Created: m.clock.Now()}, k, Key(sum("content of "+name))); err != nil {
		m.t.Fatal(err)
	}
	return id
}

// build is build number n: of four projects, each of which changes a dependency
// now and then and a source file every other time; a quarter of the builds finds
// everything as it was.
func (m *month) build(n int) {
	m.clock.add(8*time.Minute + 38*time.Second)
	lease := m.c.Lease()
	project := n % 4
	source := n / 8
	if n%16 < 4 {
		source--
	}
	id := m.step(fmt.Sprintf("p%d base %d", project, n/2000), ChainID{}, 40_000)
	id = m.step(fmt.Sprintf("p%d dependencies %d", project, n/200), id, 200_000)
	id = m.step(fmt.Sprintf("p%d copy %d", project, source), id, 4_000)
	id = m.step(fmt.Sprintf("p%d compile %d", project, source), id, 60_000)
	lease.Hold(m.step(fmt.Sprintf("p%d test %d", project, source), id, 1_000))
	// What parts of the worker remember: new folders every time.
	stat := m.c.Bucket("stat")
	for d := range 5 {
		if err := stat.Put(fmt.Appendf(nil, "folder %d %d", n, d), []byte(random(uint64(n), 500))); err != nil {
			m.t.Fatal(err)
		}
	}
	lease.Release()
	// As the engine does after each build.
	size, _, err := m.c.Size()
	if err != nil {
		m.t.Fatal(err)
	}
	if m.c.Wrote() && size > m.limit {
		prune(m.t, m.c, PruneOptions{All: true, MaxUsed: m.limit - m.limit/16})
		m.collections++
	}
}

// TestMonth has 5,000 builds in a month. What they leave is bounded: the folder by
// its limit, and what an opening reads by small numbers.
func TestMonth(t *testing.T) {
	m := &month{t: t, dir: t.TempDir(), limit: 16 << 20, clock: clock{now: time.Unix(1_700_000_000, 0)}}
	each := 50 // builds in a process, as in a daemon that is started anew now and then
	if *lifeEach {
		each = 1
	}
	const builds = 5000
	var largest int64
	for n := range builds {
		if n%each == 0 {
			m.open()
		}
		m.build(n)
		if (n+1)%each == 0 {
			closeCache(t, m.c)
		}
		if n%500 == 499 {
			largest = max(largest, du(t, m.dir))
		}
	}
	m.open()
	defer closeCache(t, m.c)
	usage, err := m.c.Usage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	tables, _ := filepath.Glob(m.c.Path("db", "*.sst"))
	logs, _ := filepath.Glob(m.c.Path("db", "*.vlog"))
	used, err := os.Stat(m.c.Path("used"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d hits, %d misses, %d collections; largest %d KB; %d records; %d tables, %d logs, uses of %d KB; opened %d times, last in %v, %v, %v",
		m.hits, m.misses, m.collections, largest>>10, len(usage), len(tables), len(logs), used.Size()>>10, len(m.opens),
		m.opens[len(m.opens)-1], m.opens[len(m.opens)/2], m.opens[1])
	// The size is kept account of, not looked at, and so is a little behind.
	if largest > m.limit+m.limit/4 {
		t.Errorf("the folder had %d bytes, the limit is %d", largest, m.limit)
	}
	if len(tables) > 40 || len(logs) > 4 || used.Size() > 1<<20 {
		t.Errorf("there are %d tables, %d logs, and %d bytes of uses", len(tables), len(logs), used.Size())
	}
	if m.hits < 2*m.misses {
		t.Errorf("%d hits and %d misses: what is of use was collected", m.hits, m.misses)
	}
}
