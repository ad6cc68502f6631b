#!/usr/bin/env bash
# Builds BuildKit's own tests of its client, and runs them against kiln:
# run.sh [REGEXP of case names].
set -euo pipefail
cd "$(dirname "$0")"

# What the cases call, beyond what `make deps` installs: program=package.
missing=()
for p in curl=curl ssh-agent=openssh-client; do
	command -v "${p%=*}" >/dev/null || missing+=("${p#*=}")
done
if [ ${#missing[@]} -gt 0 ]; then
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "The cases need the programs of these Debian packages; install them and run this again: ${missing[*]}" >&2
		exit 1
	fi
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/kiln-test
../peers/build.sh "$cache/peers" buildctl
go=${GO:-go}
(cd suite && CGO_ENABLED=0 "$go" test -c -o "$cache/client.test" github.com/moby/buildkit/client)
export CONFORMANCE_SUITE=$cache/client.test CONFORMANCE_PEERS=$cache/peers CONFORMANCE_CASES=${1:-}
CONFORMANCE_FOLDER=$(cd suite && "$go" list -f '{{.Dir}}' github.com/moby/buildkit/client)
export CONFORMANCE_FOLDER
# Without a package argument go test lets through what a passing test prints.
exec env CGO_ENABLED=0 "$go" test -count=1 -timeout 60m -tags conformance -run TestSuite
