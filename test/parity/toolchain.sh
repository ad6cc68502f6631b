#!/usr/bin/env bash
# Makes the Debian root file system with compilers and interpreters that the long
# cases take as their base, once: toolchain.sh FILE.tar
set -euo pipefail
[ ! -f "$1" ] || exit 0
mkdir -p "$(dirname "$1")"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' 'Component: main' | head -n 1)
if [ -z "$mirror" ]; then
	echo "debootstrap needs a Debian mirror, and none is in this machine's apt sources" >&2
	exit 1
fi
root=$(mktemp -d "$(dirname "$1")/root.XXXXXX")
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=gcc,libc6-dev,make,nodejs,python3 bookworm "$root" "$mirror" >"$1.log" 2>&1 || {
	tail -n 20 "$1.log" >&2
	exit 1
}
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}
tar -C "$root" --numeric-owner --xattrs -cf "$1.part" .
mv "$1.part" "$1"
