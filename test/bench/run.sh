#!/usr/bin/env bash
# Builds and fetches what the benchmarks need, and runs them: run.sh [FLAG…] [WORKLOAD…].
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! command -v buildah >/dev/null; then
	if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
		echo "The benchmarks need buildah: install it and run this again" >&2
		exit 1
	fi
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah >/dev/null
fi
peers=${XDG_CACHE_HOME:-$HOME/.cache}/kiln-test/peers
test/peers/build.sh "$peers" buildctl buildkitd
go build -o bin/bench ./test/bench
exec bin/bench -peers "$peers" "$@"
