#!/usr/bin/env bash
# Builds BuildKit's own tests of its client and of its Dockerfile frontend, and runs
# them against kiln: run.sh [REGEXP of case names [client|dockerfile|gateway]].
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
../peers/build.sh "$cache/peers" buildctl dockerfile-frontend
go=${GO:-go}
programs=$cache/conformance
mkdir -p "$programs"
for package in client frontend/dockerfile; do
	case $package in
	client) [ "${2:-client}" = client ] || continue ;;
	*) [ "${2:-}" != client ] || continue ;;
	esac
	(cd suite && CGO_ENABLED=0 "$go" test -c -o "$programs/${package##*/}.test" "github.com/moby/buildkit/$package")
done
export CONFORMANCE_PROGRAMS=$programs CONFORMANCE_PEERS=$cache/peers CONFORMANCE_CASES=${1:-}
CONFORMANCE_MODULE=$(cd suite && "$go" list -m -f '{{.Dir}}' github.com/moby/buildkit)
export CONFORMANCE_MODULE
# Without a package argument go test lets through what a passing test prints.
exec env CGO_ENABLED=0 "$go" test -count=1 -timeout 90m -tags conformance -run "TestSuite/${2:-}"
