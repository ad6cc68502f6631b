#!/usr/bin/env bash
# Installs what the tests need, and makes the Debian root file system that they
# take as a base image. Runs in a moment when everything is there.
set -euo pipefail
cd "$(dirname "$0")"

packages=(buildah busybox-static crun debootstrap docker-registry gcc git iproute2 jq libc6-dev libcap2-bin libpcre2-8-0 runc skopeo strace uidmap zstd)

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
base=$cache/bookworm.tar
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
	chmod 755 "$root"
	rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
	tar -C "$root" --numeric-owner --xattrs -cf "$base.part" .
	mv "$base.part" "$base"
fi

# A web server that stores what it is sent. It is unpacked, not installed: Debian would
# start it, for everybody.
if [ ! -x "$cache/nginx" ]; then
	rm -rf "$cache/nginx.part"
	mkdir -p "$cache/nginx.part"
	(cd "$cache/nginx.part" && apt-get -qq -o APT::Sandbox::User=root download nginx && dpkg-deb -x nginx_*.deb .)
	mv "$cache/nginx.part/usr/sbin/nginx" "$cache/nginx"
	rm -rf "$cache/nginx.part"
fi

# An emulator of arm64, and a program for it. They are unpacked, not installed: apt
# takes arm64 packages only with folders of their own, and the machine stays as it is.
foreign=$cache/arm64
if [ ! -f "$foreign/busybox" ]; then
	rm -rf "$foreign.part"
	mkdir -p "$foreign.part/lists/partial" "$foreign.part/archives/partial" "$foreign.part/root"
	touch "$foreign.part/status"
	arm64=(-qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Acquire::Languages=none -o APT::Sandbox::User=root
		-o Dir::State::lists="$foreign.part/lists" -o Dir::State::status="$foreign.part/status" -o Dir::Cache="$foreign.part")
	(
		cd "$foreign.part"
		apt-get -qq -o APT::Sandbox::User=root download qemu-user-static
		apt-get "${arm64[@]}" update
		apt-get "${arm64[@]}" download busybox-static
		for deb in *.deb; do dpkg-deb -x "$deb" root; done
	)
	mkdir -p "$foreign"
	# By this name the program knows how it was registered.
	mv "$foreign.part/root/usr/bin/qemu-aarch64-static" "$foreign/aarch64-binfmt-P"
	mv "$foreign.part/root/usr/lib/binfmt.d/qemu-aarch64.conf" "$foreign/"
	mv "$foreign.part/root/bin/busybox" "$foreign/"
	rm -rf "$foreign.part"
fi
