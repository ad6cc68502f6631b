#!/usr/bin/env bash
# Builds BuildKit's own tests of what its daemon does, and those of buildx, and runs
# them against kiln:
# run.sh [REGEXP of case names [client|buildctl|frontend|solver|dockerfile|gateway|buildx]].
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
../peers/build.sh "$cache/peers" buildctl buildx dockerfile-frontend
go=${GO:-go}
programs=$cache/conformance
mkdir -p "$programs"
buildkit=github.com/moby/buildkit
for package in $buildkit/client $buildkit/cmd/buildctl $buildkit/frontend $buildkit/solver $buildkit/frontend/dockerfile github.com/docker/buildx/tests; do
	name=${package##*/}
	case ${2:-$name}:$name in
	"$name:$name" | gateway:dockerfile | buildx:tests) ;;
	*) continue ;;
	esac
	(cd suite && CGO_ENABLED=0 "$go" test -c -o "$programs/$name.test" "$package")
	ln -sfn "$(cd suite && "$go" list -f '{{.Dir}}' "$package")" "$programs/$name.dir"
done
export CONFORMANCE_PROGRAMS=$programs CONFORMANCE_PEERS=$cache/peers CONFORMANCE_CASES=${1:-}
# Without a package argument go test lets through what a passing test prints.
exec env CGO_ENABLED=0 "$go" test -count=1 -timeout 90m -tags conformance -run "TestSuite/${2:-}"
