#!/usr/bin/env bash
# Runs kiln's tests with the real clients, builds BuildKit's own tests of what its daemon
# does, and those of buildx, and runs them against kiln:
# run.sh [REGEXP of case names [scripts|client|buildctl|frontend|solver|dockerfile|gateway|buildx]].
set -euo pipefail
cd "$(dirname "$0")"

# What the cases call, beyond what `make deps` installs: program=package.
missing=()
for p in curl=curl gpg=gpg gpg-agent=gpg-agent ssh-agent=openssh-client; do
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
# Two people who sign, with the scripts by which BuildKit makes them.
signers=$programs/signers
if [ ! -d "$signers" ]; then
	scripts=$(cd suite && "$go" list -m -f '{{.Dir}}' "$buildkit")/hack/fixtures
	rm -rf "$signers.part"
	mkdir -m 700 "$signers.part"
	for user in user1 user2; do
		for kind in gpg ssh; do
			BUILDKIT_TEST_SIGN_FIXTURES=$signers.part sh "$scripts/gen_${kind}_test_env.sh" $user >>"$signers.part/log" 2>&1 ||
				{ tail -n 20 "$signers.part/log" >&2; exit 1; }
		done
		# BuildKit's own counts on arguments that git gives since 2.40.
		cat >"$signers.part/$user.git_ssh_sign.sh" <<-END
			#!/bin/sh
			for file; do :; done
			exec ssh-keygen -q -Y sign -f "$signers/.ssh/$user.id_ed25519" -n git "\$file"
		END
	done
	GNUPGHOME=$signers.part/gnupg gpgconf --kill gpg-agent
	grep -lIrF "$signers.part" "$signers.part" | xargs sed -i "s|$signers.part|$signers|g"
	mv "$signers.part" "$signers"
fi
# Signing starts an agent, which ends with this.
trap 'GNUPGHOME=$signers/gnupg gpgconf --kill gpg-agent' EXIT
export BUILDKIT_TEST_SIGN_FIXTURES=$signers
export CONFORMANCE_PROGRAMS=$programs CONFORMANCE_PEERS=$cache/peers CONFORMANCE_CASES=${1:-}
# Without a package argument go test lets through what a passing test prints.
env CGO_ENABLED=0 "$go" test -count=1 -timeout 90m -tags conformance -run "TestSuite/${2:-}"
