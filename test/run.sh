#!/usr/bin/env bash
# Runs all tests, the race detector on the packages that share state, and checks
# that nothing is left behind: no mounts, processes, cgroups or files. Everything
# that the tests make lies below one temporary folder, by which it is known.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d "${TMPDIR:-/tmp}/kiln-test.XXXXXX")
chmod 711 "$work" # tests act as other users in it
export TMPDIR=$work

# left lists what is still there of the tests.
left() {
	awk -v w="$work" 'index($0, w) {print "mount " $5}' /proc/self/mountinfo
	pgrep -af -- "$work" | grep -v "test/run.sh" | sed 's/^/process /' || true
	# A step's cgroup carries the process id of its kiln as the second word of its name.
	find /sys/fs/cgroup -maxdepth 4 -type d -path '*/kiln/*.*.*' 2>/dev/null | while read -r dir; do
		pid=$(basename "$dir" | cut -d. -f2)
		[ -d "/proc/$pid" ] || echo "cgroup $dir"
	done
	find "$work" -mindepth 1 -maxdepth 1 ! -name 'go-build*' ! -name 'go.*' | sed 's/^/file /'
}

status=0
# A month of builds takes half a minute, and ten times that under the race detector, to
# which it is one goroutine.
CGO_ENABLED=1 go test -race -count=1 -timeout 20m -skip '^TestMonth$' ./llb/... ./solver/... ./cache/... ./frontend/... ./registry/... || status=$?
go test -count=1 -timeout 20m -run '^TestMonth$' ./cache || status=$?
module=$(go list -m)
go test -count=1 -timeout 30m $(go list ./... | grep -vE "^$module/(llb|solver|cache|frontend|registry)(/|\$)") || status=$?
# A module of its own: whatever was found to differ from BuildKit's compiler, and every parity case.
(cd test/fuzz && go test -count=1 -timeout 20m ./...) || status=$?

leavings=$(left)
if [ -n "$leavings" ]; then
	echo "The tests left something behind:" >&2
	echo "$leavings" >&2
	status=1
fi
rm -rf "$work"
exit $status
