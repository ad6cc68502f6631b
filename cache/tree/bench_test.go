package tree

import (
	"fmt"
	"testing"
)

// source is a tree of count files in folders of some hundred, as source code is
// laid out.
func source(b *Builder, count int) error {
	for i := range count {
		e := Entry{Kind: File, Mode: 0o644, MTime: int64(i) * 1e9, Size: int64(i), Tag: uint64(i) * 0x9e3779b97f4a7c15}
		e.Content[0], e.Content[1], e.Content[2] = byte(i), byte(i>>8), byte(i>>16)
		if err := b.Set(fmt.Sprintf("src/module%d/package%02d/file%05d.go", i/5000, i/200%25, i), e); err != nil {
			return err
		}
	}
	return nil
}

// flat is a directory of count files.
func flat(tb testing.TB, n Nodes, count int) Entry {
	var b Builder
	for i := range count {
		e := Entry{Kind: File, Mode: 0o644, MTime: int64(i) * 1e9, Size: int64(i), Tag: uint64(i) * 0x9e3779b97f4a7c15}
		if err := b.Set(fmt.Sprintf("file%06d", i), e); err != nil {
			tb.Fatal(err)
		}
	}
	root, err := b.Root(n)
	if err != nil {
		tb.Fatal(err)
	}
	return root
}

func tree(tb testing.TB, n Nodes, count int) Entry {
	var b Builder
	if err := source(&b, count); err != nil {
		tb.Fatal(err)
	}
	root, err := b.Root(n)
	if err != nil {
		tb.Fatal(err)
	}
	return root
}

func BenchmarkBuild(b *testing.B) {
	for _, count := range []int{20_000, 300_000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				tree(b, NewMemNodes(), count)
			}
		})
	}
	b.Run("flat300000", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			flat(b, NewMemNodes(), 300_000)
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	n := NewMemNodes()
	for _, count := range []int{100, 256, 100_000} {
		root := flat(b, n, count)
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := Lookup(n, root, fmt.Sprintf("file%06d", i%count)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	root := tree(b, n, 20_000)
	b.Run("deep", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Lookup(n, root, "src/module3/package20/file19123.go"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkEdit changes one file after the other in a directory of 100,000.
func BenchmarkEdit(b *testing.B) {
	n := NewMemNodes()
	root := flat(b, n, 100_000)
	_, before := n.Written()
	b.ReportAllocs()
	i := 0
	for ; b.Loop(); i++ {
		ed := Edit(n, root)
		if err := ed.Set(fmt.Sprintf("file%06d", i*7919%100_000), Entry{Kind: File, MTime: int64(i)}); err != nil {
			b.Fatal(err)
		}
		var err error
		if root, err = ed.Root(); err != nil {
			b.Fatal(err)
		}
	}
	_, after := n.Written()
	b.ReportMetric(float64(after-before)/float64(i), "written/op")
}

// BenchmarkLayer finds and applies one changed file among 300,000.
func BenchmarkLayer(b *testing.B) {
	n := NewMemNodes()
	lower := tree(b, n, 300_000)
	ed := Edit(n, lower)
	if err := ed.Set("src/module30/package07/file151500.go", Entry{Kind: File}); err != nil {
		b.Fatal(err)
	}
	upper, err := ed.Root()
	if err != nil {
		b.Fatal(err)
	}
	layer, err := Diff(n, lower, upper, ByAddr)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("diff", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Diff(n, lower, upper, ByAddr); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("apply", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Apply(n, lower, layer); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("apply-same", func(b *testing.B) {
		for b.Loop() {
			if _, err := Apply(n, lower, upper); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkWalk(b *testing.B) {
	n := NewMemNodes()
	root := tree(b, n, 300_000)
	b.ReportAllocs()
	for b.Loop() {
		if err := Walk(n, root, func(string, Entry) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMap(b *testing.B) {
	n := NewMemNodes()
	root := tree(b, n, 300_000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Map(n, root, func(_ string, e Entry) (Entry, error) { e.UID = 1000; return e, nil }); err != nil {
			b.Fatal(err)
		}
	}
}
