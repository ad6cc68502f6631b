package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// words are what generated text is made of: it compresses about as source does.
var words = func() []string {
	rng := rand.New(rand.NewPCG(1, 1))
	out := make([]string, 2000)
	for i := range out {
		b := make([]byte, 2+rng.IntN(10))
		for j := range b {
			b[j] = byte('a' + rng.IntN(26))
		}
		out[i] = string(b)
	}
	return out
}()

// text gives n bytes of it.
func text(rng *rand.Rand, n int) []byte {
	buf := make([]byte, 0, n+16)
	for len(buf) < n {
		buf = append(buf, words[rng.IntN(len(words))]...)
		if rng.IntN(9) == 0 {
			buf = append(buf, ";\n\t"...)
		} else {
			buf = append(buf, ' ')
		}
	}
	return buf[:n]
}

// size picks the size of a source file: most are small, a few are not; the mean
// is about 5.9 kB, which makes 118 MB of 20,000.
func size(rng *rand.Rand) int {
	switch p := rng.IntN(1000); {
	case p < 550:
		return 200 + rng.IntN(1800)
	case p < 850:
		return 2000 + rng.IntN(8000)
	case p < 985:
		return 10_000 + rng.IntN(18_000)
	default:
		return 40_000 + rng.IntN(90_000)
	}
}

// sourceTree makes a folder of n files, twenty in each folder of the last level.
func sourceTree(dir string, n int) error {
	rng := rand.New(rand.NewPCG(2, uint64(n)))
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprintf("pkg%02d/mod%02d/part%d", i/4000, i/200%20, i/20%10))
		if i%20 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("file%d.go", i)), text(rng, size(rng)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// edited is the file of a source tree that edits change.
const edited = "pkg00/mod00/part0/file7.go"

// edit writes the file that builds find edited; n names the edit.
func edit(dir, file string, n int) error {
	path := filepath.Join(dir, file)
	return os.WriteFile(path, fmt.Appendf(nil, "package edited // %d\n%s\n", n, text(rand.New(rand.NewPCG(3, uint64(n))), 3000)), 0o644)
}

// editedModule is the file of a node_modules tree that edits change.
const editedModule = "node_modules/mod0007/index.js"

// modulesTree makes a folder of n files as npm leaves it: a hundred in each
// module, licences that are the same in many, most files below four kilobytes.
func modulesTree(dir string, n int) error {
	rng := rand.New(rand.NewPCG(4, uint64(n)))
	licences := make([][]byte, 5)
	for i := range licences {
		licences[i] = text(rng, 1100+200*i)
	}
	for m := 0; m*100 < n; m++ {
		module := filepath.Join(dir, fmt.Sprintf("node_modules/mod%04d", m))
		if m%5 == 4 {
			module = filepath.Join(dir, fmt.Sprintf("node_modules/@scope%02d/mod%04d", m%40, m))
		}
		if err := writeModule(rng, module, licences[m%5], min(100, n-m*100)); err != nil {
			return err
		}
	}
	return nil
}

func writeModule(rng *rand.Rand, dir string, licence []byte, n int) error {
	for i := range n {
		name, data := "", []byte(nil)
		switch {
		case i == 0:
			name, data = "package.json", text(rng, 700)
		case i == 1:
			name, data = "LICENSE", licence
		case i == 2:
			name, data = "index.js", text(rng, 1500)
		case i < 50:
			name, data = fmt.Sprintf("lib/part%d/file%d.js", i%6, i), text(rng, 150+rng.IntN(2500))
		default:
			name, data = fmt.Sprintf("dist/esm/file%d.d.ts", i), text(rng, 80+rng.IntN(900))
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
