# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the lab's scripts share: where things are kept, how keys are made, how to speak.
# Sourced, never run.

set -euo pipefail
export LC_ALL=C

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck disable=SC2034
checkout=$(dirname "$scripts")

if [ -n "${RDAX_CACHE:-}" ]; then
	cache=$RDAX_CACHE
elif [ -n "${XDG_CACHE_HOME:-}" ]; then
	cache=$XDG_CACHE_HOME/rdax
elif [ -n "${HOME:-}" ]; then
	cache=$HOME/.cache/rdax
else
	cache=/var/cache/rdax
fi

say() { printf 'lab: %s\n' "$*" >&2; }
die() {
	printf 'lab: error: %s\n' "$*" >&2
	exit 1
}

need_root() {
	[ "$(id -u)" = 0 ] || die "${0##*/} must run as root (it makes a root file system and mounts it)"
}

# Key of a set of files: what they say, comments aside.
key_of() { sed '/^[[:space:]]*\(#.*\)\?$/d' "$@" | sha256sum | cut -c1-12; }

# Which kernel: a line of scripts/kernels, as SERIES or SERIES-SUITE; without one, the newest of them
# that the archive has. What was made for several kernels is kept side by side.
kernel_wanted=${RDAX_KERNEL:-newest}
[[ $kernel_wanted =~ ^[a-z0-9.]+(-[a-z]+)?$ ]] ||
	die "RDAX_KERNEL is a series like 7.2, or a series and a suite like 7.2-forky, not $kernel_wanted"
kernel_label=${kernel_wanted/-/.}

# A kernel's key names everything it was made from, the root file system first.
root_key() { key_of "$scripts/packages" "$scripts/kernels" "$scripts/make-root"; }
root_dir() { printf '%s/root-%s-%s' "$cache" "$kernel_label" "$(root_key)"; }
kernel_dir() { # stock|debug
	local parts=("$scripts/packages" "$scripts/kernels" "$scripts/make-root")
	case $1 in
	stock) parts+=("$scripts/prepare-kernel") ;;
	debug) parts+=("$scripts/make-debug-kernel" "$scripts"/debug*.config) ;;
	esac
	printf '%s/%s-%s-%s' "$cache" "$1" "$kernel_label" "$(key_of "${parts[@]}")"
}
# Quick to make, so it is apart from the kernel it belongs to.
initramfs() { # stock|debug
	printf '%s/initramfs-%s' "$(kernel_dir "$1")" \
		"$(key_of "$scripts/make-initramfs" "$scripts/initramfs-init")"
}

# Run a long step with its output in a log, and one line of progress.
#   step NAME COMMAND…
step() {
	local name=$1 log start=$SECONDS status=0
	shift
	mkdir -p "$cache/log"
	log=$cache/log/${name//[^A-Za-z0-9]/-}.log
	"$@" >"$log" 2>&1 </dev/null || status=$?
	if [ "$status" != 0 ]; then
		say "$name: FAILED after $((SECONDS - start)) s; the last lines of $log:"
		tail -n 30 "$log" >&2
		return "$status"
	fi
	say "$name: $((SECONDS - start)) s"
}

# Tell `prepare` that the cache is in use, so that it prunes nothing. Held until the shell ends.
use_cache() {
	mkdir -p "$cache"
	exec 8>>"$cache/.users"
	flock -s 8
}
