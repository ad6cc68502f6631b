package script

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kiln-build/kiln/test/internal/leak"
	"github.com/kiln-build/kiln/test/internal/peer"
)

var commands = map[string]func(*testscript.TestScript, bool, []string){
	"registry":   cmdRegistry,
	"frontend":   cmdFrontend,
	"debian":     cmdDebian,
	"ocirun":     cmdOCIRun,
	"files":      cmdFiles,
	"config":     cmdConfig,
	"tree":       cmdTree,
	"arm64":      cmdARM64,
	"web":        cmdWeb,
	"secretless": leak.Command,
	"emulated":   cmdEmulated,
	"mountless":  cmdMountless,
}

// usage ends a script whose command has the wrong arguments.
func usage(ts *testscript.TestScript, ok bool, text string) {
	if !ok {
		ts.Fatalf("usage: %s", text)
	}
}

func cmdRegistry(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "registry NAME")
	r, err := peer.StartRegistry(ts.MkAbs("." + args[0]))
	ts.Check(err)
	ts.Defer(r.Stop)
	ts.Setenv(args[0], r.Addr)
}

func cmdDebian(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 0, "debian")
	ts.Check(debian())
}

func cmdOCIRun(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 1, "[!] ocirun TAR [ARG…]")
	out, err := peer.Run(ts.MkAbs(args[0]), args[1:])
	fmt.Fprint(ts.Stdout(), out)
	if (err != nil) != neg {
		ts.Fatalf("running %s: %v", args[0], err)
	}
}

func cmdFiles(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "files TAR")
	img, err := peer.Open(ts.MkAbs(args[0]), shared.bin)
	ts.Check(err)
	lines, err := peer.Files(img)
	ts.Check(err)
	fmt.Fprintln(ts.Stdout(), strings.Join(lines, "\n"))
}

func cmdConfig(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "config TAR")
	img, err := peer.Open(ts.MkAbs(args[0]), shared.bin)
	ts.Check(err)
	raw, err := img.RawConfigFile()
	ts.Check(err)
	var v any
	ts.Check(json.Unmarshal(raw, &v))
	text, err := json.MarshalIndent(v, "", " ")
	ts.Check(err)
	fmt.Fprintln(ts.Stdout(), string(text))
}

// cmdTree makes files that are the same in every run: their bytes come from a
// generator with a fixed seed.
func cmdTree(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "tree DIR N")
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	dir := ts.MkAbs(args[0])
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprintf("d%02d/e%02d", i%40, i/40%25))
		if i < 1000 {
			ts.Check(os.MkdirAll(sub, 0o755))
		}
		data := make([]byte, 16+rnd.IntN(4000))
		for j := range data {
			data[j] = "abcdefghijklmnop \n"[rnd.IntN(18)]
		}
		ts.Check(os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%05d.txt", i)), data, 0o644))
	}
}

// cmdMountless looks for what a build of this script may have left behind.
func cmdMountless(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 0, "mountless")
	work := ts.Getenv("WORK")
	var left []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	ts.Check(err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, work) {
			left = append(left, "mount "+line)
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	ts.Check(err)
	for _, p := range procs {
		root, err := os.Readlink(filepath.Join(p, "root"))
		if err == nil && strings.HasPrefix(root, work) {
			left = append(left, "process "+p+" in "+root)
		}
		if env, err := os.ReadFile(filepath.Join(p, "cmdline")); err == nil && strings.Contains(string(env), work+".state") {
			left = append(left, "process "+p+" "+strings.ReplaceAll(string(env), "\x00", " "))
		}
	}
	ts.Check(filepath.WalkDir(ts.Getenv("KILN_ROOT")+"/tmp", func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != ts.Getenv("KILN_ROOT")+"/tmp" {
			left = append(left, "file "+path)
		}
		return nil
	}))
	if len(left) > 0 {
		sort.Strings(left)
		ts.Fatalf("left behind:\n%s", strings.Join(left, "\n"))
	}
}
