#!/usr/bin/env bash
# Builds the peers and the base image that the cases need, then every case:
# run.sh [REGEXP of case names].
set -euo pipefail
cd "$(dirname "$0")"

# What the cases' scripts use, beyond what `make deps` installs: program=package.
missing=()
for p in bzip2=bzip2 python3=python3 ssh-keygen=openssh-client xz=xz-utils; do
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
../peers/build.sh "$cache/peers" buildctl buildkitd dockerfile-frontend
./toolchain.sh "$cache/debian-toolchain.tar"
export PARITY_PEERS=$cache/peers PARITY_TOOLCHAIN=$cache/debian-toolchain.tar
# Without a package argument go test lets through what a passing test prints.
exec env CGO_ENABLED=0 "${GO:-go}" test -count=1 -timeout 60m -parallel 4 -tags parity -run "(TestCompare|TestParity)/cases/${1:-.}"
