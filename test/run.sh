#!/usr/bin/env bash
# Runs all tests, the race detector on the packages that share state, and checks
# that nothing is left behind: no mounts, processes, cgroups or files.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d "${TMPDIR:-/tmp}/kiln-test.XXXXXX")
chmod 711 "$work" # tests act as other users in it
export TMPDIR=$work

snapshot() {
	{
		awk '{print "mount " $5}' /proc/self/mountinfo
		find /sys/fs/cgroup -type d -name '*kiln*' 2>/dev/null | sed 's/^/cgroup /'
		ip netns list 2>/dev/null | sed 's/^/netns /'
		ps -eo args= | grep -E "$work|docker-registry serve" | grep -vE 'grep|ps -eo|test/run.sh' | sed 's/^/process /' || true
	} | sort
}

before=$(snapshot)
status=0
CGO_ENABLED=1 go test -race -count=1 -timeout 20m ./llb/... ./solver/... ./cache/... ./frontend/... ./registry/... || status=$?
go test -count=1 -timeout 30m $(go list ./... | grep -vE '/(llb|solver|cache|frontend|registry)(/|$)') || status=$?
after=$(snapshot)

if [ "$before" != "$after" ]; then
	echo "The tests left something behind:" >&2
	diff <(echo "$before") <(echo "$after") >&2 || true
	status=1
fi
left=$(find "$work" -mindepth 1 -maxdepth 1 ! -name 'go-build*' ! -name 'go.*' | head)
if [ -n "$left" ]; then
	echo "The tests left files in their temporary folder:" >&2
	echo "$left" >&2
	status=1
fi
rm -rf "$work"
exit $status
