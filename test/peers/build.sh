#!/usr/bin/env bash
# Builds the peers into a folder: build.sh DIR [NAME…]. What is there stays. The S3
# server (versitygw) is built where it is asked for only.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
mkdir -p "$1"
dir=$(realpath "$1")
shift
[ $# -gt 0 ] || set -- buildctl buildkitd dockerfile-frontend buildx
declare -A package=(
	[buildctl]=github.com/moby/buildkit/cmd/buildctl
	[buildkitd]=github.com/moby/buildkit/cmd/buildkitd
	[dockerfile-frontend]=github.com/moby/buildkit/frontend/dockerfile/cmd/dockerfile-frontend
	[buildx]=github.com/docker/buildx/cmd/buildx
	[versitygw]=github.com/versity/versitygw/cmd/versitygw
)
for name in "$@"; do
	cd "$here"
	[ "$name" != versitygw ] || cd s3
	[ -x "$dir/$name" ] || CGO_ENABLED=0 go build -tags osusergo,netgo -o "$dir/$name" "${package[$name]}"
done
