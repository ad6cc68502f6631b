package main

import "runtime"

// workloads are all that there are, in the order in which they run.
var workloads = []workload{
	{
		name: "Thirty steps on a Debian base",
		rows: []row{
			{id: "W1", title: "30 trivial `RUN` steps, nothing cached, no output", goal: 0.15},
			{id: "W2", title: "the same, all cached, no output, by a daemon that runs", goal: 0.35},
			{id: "W2 alone", title: "the same by a process that opens the state folder itself", goal: 0.35},
			{id: "W2 inside", title: "the same inside an engine that is open"},
			{id: "W3", title: "the same, all cached, OCI tarball written again", goal: 0.15},
		},
		setup: unpackBase, round: stepsRound, plain: stepsPlain,
	},
	{
		name: "A context of 20,000 files",
		rows: []row{
			{id: "W4", title: "first build: `COPY . .`, a short `RUN`, `COPY --from`, OCI tarball", goal: 0.20},
			{id: "W5", title: "the same with one file edited", goal: 0.10},
			{id: "W6", title: "the same with nothing edited, no output", goal: 0.20},
		},
		setup: sources.setup, round: sources.round, plain: sources.plain, disk: 10,
		fewer: map[string]int{"buildah": 1},
	},
	{
		name: "A context of 300,000 files, as a node_modules tree is",
		rows: []row{
			{id: "W7 first", title: "first build, as W4", goal: 0.20},
			{id: "W7 edited", title: "one file edited", goal: 0.10},
			{id: "W7 unchanged", title: "nothing edited, no output", goal: 0.20},
		},
		rounds: 3, setup: modules.setup, round: modules.round, plain: modules.plain, disk: 24,
		without: map[string]string{"buildah": "a round would take it a quarter of an hour, by what it takes for 20,000 files"},
	},
	{
		name: "LLB graphs",
		rows: graphRows(), rounds: 3, setup: graphSetup, round: graphRound, plain: graphPlain, disk: 24,
		without: map[string]string{"buildah": "it does not take LLB"},
	},
	{
		name: "Eight independent stages, against the ideal schedule",
		rows: []row{
			{id: "W8 compute", title: "a second of one processor each", goal: 1.1, ideal: float64(stages) / float64(min(stages, runtime.NumCPU()))},
			{id: "W8 sleep", title: "a second of sleep each", goal: 1.1, ideal: 1},
		},
		round: scheduleRound, plain: schedulePlain,
		fewer: map[string]int{"buildah": 1},
	},
	{
		name: "Pull and unpack of a 1 GB base of 8 layers",
		rows: []row{
			{id: "W9 gzip", title: "layers compressed by gzip", goal: 0.5},
			{id: "W9 zstd", title: "layers compressed by zstd", goal: 0.5},
		},
		setup: pullSetup, round: pullRound, plain: pullPlain, disk: 20,
		fewer: map[string]int{"buildah": 1},
	},
	{
		name:   "Steps that write much, and their export",
		rows:   writeRows(),
		rounds: 3, setup: writeSetup, round: writeRound, plain: writePlain, disk: 40,
		fewer: map[string]int{"buildah": 1},
	},
	{
		name:  "Push of an image whose layers the registry has, all but one",
		rows:  []row{{id: "W11", title: "the last of eleven layers is new; its step is in the time", goal: 0.3}},
		setup: unpackBase, round: pushRound, plain: pushPlain,
	},
	{
		name: "A runner that starts empty, with a cache in a registry",
		rows: []row{
			{id: "W16 same", title: "nothing changed: pull, export the cache, push", goal: 0.33},
			{id: "W16 edited", title: "one source line changed", goal: 0.33},
		},
		setup: unpackBase, round: runnerRound, plain: runnerPlain,
		without: map[string]string{"buildah": "its caches in registries are images of single steps, and no measure of these"},
	},
	{
		name:  "Twenty concurrent builds of five Dockerfiles that share stages",
		rows:  []row{{id: "W14", title: "from the first that starts to the last that ends", goal: 0.3}},
		setup: unpackBase, round: concurrentRound, plain: concurrentPlain,
		without: map[string]string{"buildah": "it cannot share the work of builds that run at once"},
	},
	{
		name:  "A Go service with modules and a cache mount, one source line edited",
		rows:  []row{{id: "W13", title: "the goal is the compiler alone and a tenth of its time", goal: 1.1, overPlain: true}},
		setup: projectSetup, round: projectRound, plain: projectPlain,
		fewer: map[string]int{"buildah": 1},
	},
	{
		name:  "Memory at rest, after W4's first build without an output",
		rows:  []row{{id: "W15", title: "resident after twenty seconds", goal: 60 << 20, memory: true}},
		setup: sources.setup, round: memoryRound,
		without: map[string]string{"buildah": "it has no process that stays"},
	},
}
