#!/usr/bin/env bash
# Builds and fetches what the benchmarks need, and runs them: run.sh [FLAG…] [WORKLOAD…].
set -euo pipefail
cd "$(dirname "$0")/../.."

peers=${XDG_CACHE_HOME:-$HOME/.cache}/kiln-test/peers
test/peers/build.sh "$peers" buildctl buildkitd
go build -o bin/bench ./test/bench
exec bin/bench -peers "$peers" "$@"
