#!/usr/bin/env bash
# Installs what the tests need, and makes the Debian root file system that they
# take as a base image. Runs in a moment when everything is there.
set -euo pipefail
cd "$(dirname "$0")"

packages=(busybox-static crun debootstrap docker-registry git iproute2 jq libcap2-bin runc skopeo strace uidmap zstd)

missing=()
for p in "${packages[@]}"; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
	if ! command -v apt-get >/dev/null; then
		echo "The tests need the programs of these Debian packages; install them and run this again:" >&2
		echo "  ${missing[*]}" >&2
		exit 1
	fi
	if [ "$(id -u)" != 0 ]; then
		echo "The tests need these packages: run as root" >&2
		echo "  apt-get install ${missing[*]}" >&2
		exit 1
	fi
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# The mirror is the one that this machine's apt uses.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kiln-test
base=$cache/debian-bookworm.tar
if [ ! -f "$base" ]; then
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' 'Component: main' | head -n 1)
	if [ -z "$mirror" ]; then
		echo "debootstrap needs a Debian mirror, and none is in this machine's apt sources" >&2
		exit 1
	fi
	mkdir -p "$cache"
	root=$(mktemp -d "$cache/root.XXXXXX")
	trap 'rm -rf "$root"' EXIT
	debootstrap --variant=minbase bookworm "$root" "$mirror" >"$cache/debootstrap.log" 2>&1 || {
		tail -n 20 "$cache/debootstrap.log" >&2
		exit 1
	}
	rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
	tar -C "$root" --numeric-owner --xattrs -cf "$base.part" .
	mv "$base.part" "$base"
fi
