#!/usr/bin/env bash
# Builds this folder's image twice into a state folder of its own, and shows what
# the second build costs. Usage: demo.sh KILN
set -euo pipefail
kiln=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
out=${here%/examples/hello}/out
mkdir -p "$out"
state=$(mktemp -d "$out/state.XXXXXX")
trap 'rm -rf "$state"' EXIT

build() {
	"$kiln" build --root "$state" --network none \
		--build-context goroot="$(go env GOROOT)" \
		--tag hello:latest --output "type=oci,dest=$out/hello.tar" \
		--metadata-file "$out/hello.json" "$here"
}

echo "== the first build"
build
echo
echo "== the second build, nothing changed"
start=$(date +%s%N)
build
end=$(date +%s%N)

digest=$(sed -nE 's/.*"containerimage.digest": *"([^"]*)".*/\1/p' "$out/hello.json")
echo
echo "image      $out/hello.tar"
echo "digest     $digest"
echo "size       $(stat -c %s "$out/hello.tar") bytes"
echo "2nd build  $(((end - start) / 1000000)) ms, all of it cached"
