#!/usr/bin/env bash
# Builds the peers and the base image that the cases need, then every case:
# run.sh [REGEXP of case names].
set -euo pipefail
cd "$(dirname "$0")"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kiln-test
../peers/build.sh "$cache/peers" buildctl buildkitd dockerfile-frontend
./toolchain.sh "$cache/debian-toolchain.tar"
export PARITY_PEERS=$cache/peers PARITY_TOOLCHAIN=$cache/debian-toolchain.tar
# Without a package argument go test lets through what a passing test prints.
exec env CGO_ENABLED=0 "${GO:-go}" test -count=1 -timeout 60m -parallel 4 -tags parity -run "(TestCompare|TestParity)/cases/${1:-.}"
