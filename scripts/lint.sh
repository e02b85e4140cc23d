# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What scripts/check looks at without a guest. Sourced by it, never run: the functions named here that are not
# defined here (run_case and what it says) are its own, and so are the variables.
# shellcheck disable=SC2154

# Files of the checkout, those not yet added included.
files() { # PATTERN…
	(cd "$checkout" &&
		git -c "safe.directory=$checkout" ls-files -co --exclude-standard -- "$@" |
		while IFS= read -r file; do
			[ ! -f "$file" ] || printf '%s\n' "$file"
		done | sort -u)
}
inside() {
	"$scripts/in-root" --ro "$checkout" /src --ro "$(kernel_dir stock)/tree" /kernel \
		--chdir /src -- "$@"
}
with_files() { # PATTERNS COMMAND…: COMMAND, inside, with the files
	local list
	# shellcheck disable=SC2086
	set -f -- $1 -- "${@:2}"
	local patterns=()
	while [ "$1" != -- ]; do
		patterns+=("$1")
		shift
	done
	shift
	set +f
	mapfile -t list < <(files "${patterns[@]}")
	[ ${#list[@]} = 0 ] || inside "$@" "${list[@]}"
}

lint_rustfmt() {
	with_files '*.rs' rustfmt --check --edition 2021 --config-path /kernel/.rustfmt.toml
}
lint_clippy() { # the arguments of scripts/build for each build, as a word
	local said status variant
	for variant; do
		status=0
		# shellcheck disable=SC2086
		said=$("$scripts/build" $variant --clippy 2>&1 >/dev/null) || status=$?
		[[ $status = 0 && -z $said ]] || {
			printf '%s\n' "$said"
			return 1
		}
	done
}
lint_checkpatch() {
	local check=(perl /kernel/scripts/checkpatch.pl --no-tree --no-summary --quiet)
	with_files 'rust/*.[ch] src/*.[ch] uapi/*.[ch] tests/kunit/*.[ch]' "${check[@]}" --file || return 1
	# User space may say volatile, lacks the kernel's macros, and has no log to search for messages.
	with_files 'tests/guest/*.[ch] tests/powercut/*.[ch] bench/*.[ch]' "${check[@]}" --file --ignore \
		VOLATILE,PREFER_DEFINED_ATTRIBUTE_MACRO,SPLIT_STRING,EMBEDDED_FUNCTION_NAME,ARRAY_SIZE
}
lint_shellcheck() {
	local list
	mapfile -t list < <(files | while IFS= read -r file; do
		if head -n 2 "$checkout/$file" | grep -aqE '^#!/bin/(ba)?sh|^# shellcheck shell='; then
			printf '%s\n' "$file"
		fi
	done)
	inside shellcheck -x "${list[@]}"
}
python_files() {
	files | while IFS= read -r file; do
		case $file in
		*.py) printf '%s\n' "$file" ;;
		*) if head -n 1 "$checkout/$file" | grep -aq '^#!.*python'; then printf '%s\n' "$file"; fi ;;
		esac
	done
}
lint_ruff() {
	local list
	mapfile -t list < <(python_files)
	cd "$checkout" && "$scripts/ruff" check --no-cache --quiet "${list[@]}"
}
lint_spdx() {
	local bad
	# cargo writes Cargo.lock anew whenever it changes.
	bad=$(files ':!*.md' ':!LICENSE*' ':!COPYING*' ':!*/Cargo.lock' | while IFS= read -r file; do
		head -n 3 "$checkout/$file" | grep -aq SPDX-License-Identifier: || printf '%s\n' "$file"
	done)
	[ -z "$bad" ] || {
		printf 'no SPDX line: %s\n' "$bad"
		return 1
	}
}
lint_boot() { # what systemd and udev of this machine, where it has them, say of the files for boot
	local said unit
	unit=$work/rdax-adopt@pmem0.service
	sed 's,/usr/sbin/rdax,/bin/true,' "$checkout/tools/boot/rdax-adopt@.service" >"$unit"
	said=$(systemd-analyze verify --man=no "$unit" 2>&1) || said+="systemd-analyze: status $?"
	if udevadm verify --help >/dev/null 2>&1; then
		udevadm verify --no-summary "$checkout/tools/boot/90-rdax.rules" >"$work/udev" 2>&1 ||
			said+=$(<"$work/udev")
	fi
	[ -z "$said" ] || {
		printf '%s\n' "$said"
		return 1
	}
}
lint_unsafe() {
	# The tests' macros make some of their own.
	! find "$checkout/src" "$checkout/tests/kunit" -name '*.rs' -exec sed 's,//.*,,' {} + | grep -w unsafe
}

# Nothing that stands for a lock, a reference or an entry that is counted is forgotten: all of it is given back.
lint_forgotten() {
	local text
	text=$(find "$checkout/src" -name '*.rs' -exec sed 's,//.*,,' {} +)
	! grep -Ew 'mem::forget|ManuallyDrop|MaybeUninit|leak|into_raw|into_foreign' <<<"$text" &&
		! tr '\n' ' ' <<<"$text" | grep -Eo 'mem::\{[^}]*\<forget\>'
}

# What the build tells of kernels: those of the list, and those whose functions are declared otherwise.
lint_prototypes() {
	local listed built
	listed=$(sed -n 's/^\([0-9.]*\) .*/\1/p' "$scripts/kernels" | xargs)
	built=$(sed -n 's/^RDAX_SERIES := //p' "$checkout/Kbuild")
	[ "$listed" = "$built" ] || {
		printf 'scripts/kernels has the series %s, Kbuild has %s\n' "$listed" "$built"
		return 1
	}
	"$checkout/tests/prototypes/run" "$(dirname "$("$scripts/build")")/rust/check_prototypes" \
		"$(kernel_dir stock)/tree/vmlinux"
}

lint_soundness() {
	"$checkout/tests/soundness/run"
}

job_lint() {
	local status=0
	run_case "rustfmt" lint_rustfmt
	run_case "clippy and no compiler warnings" lint_clippy '' --check
	run_case "clippy of the command" "$scripts/tool" clippy
	run_case "checkpatch" lint_checkpatch
	run_case "shellcheck" lint_shellcheck
	"$scripts/ruff" --version >/dev/null || status=$?
	if [ "$status" = 75 ]; then
		echo "ok 1 - ruff # SKIP there is no network, and it was not fetched before"
	else
		run_case "ruff" lint_ruff
	fi
	if [ -n "$(command -v systemd-analyze)" ]; then
		run_case "files for boot" lint_boot
	else
		echo "ok 1 - files for boot # SKIP there is no systemd-analyze"
	fi
	run_case "SPDX line in every file" lint_spdx
	run_case "no unsafe code in src and tests" lint_unsafe
	run_case "nothing in src is forgotten without being dropped" lint_forgotten
	run_case "kernels with other functions are told apart" lint_prototypes
	run_case "no safe code can corrupt memory" lint_soundness
	run_case "what cannot be done is refused for its reason" "$checkout/tests/refusals/run"
	if [ -n "$(command -v apt-cache)" ]; then
		run_case "the kernel is taken that the archive has" "$checkout/tests/archives/run"
	else
		echo "ok 1 - the kernel is taken that the archive has # SKIP there is no apt-cache"
	fi
	run_case "no circles in src, and rust knows nothing of it" inside scripts/rooms
	run_case "types that stand for something of the kernel have invariants" inside scripts/invariants
}
job_lint_tests() {
	local name="clippy and no compiler warnings in the KUnit tests"
	if [ "$kunit" = 1 ] || [ -d "$(kernel_dir debug)" ]; then
		run_case "$name" lint_clippy '--kernel debug --test'
	else
		echo "ok 1 - $name # SKIP the debug kernel is not made yet (scripts/prepare debug)"
	fi
}
