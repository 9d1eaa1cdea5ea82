# The parts of the test run. Sourced by scripts/test.
# shellcheck shell=bash disable=SC2154  # scripts/test sets the options

shell_scripts() {
	grep -rlE '^#!.*sh$|shellcheck shell=' .ci scripts
}

unit_part() {
	local scripts
	step format cargo fmt --check || true
	step clippy cargo clippy --locked --all-targets -- -D warnings || true
	RUSTDOCFLAGS="-D warnings" step documentation cargo doc --locked --no-deps || true
	if command -v shellcheck >/dev/null; then
		mapfile -t scripts < <(shell_scripts)
		step "shell scripts" shellcheck -x "${scripts[@]}" || true
	else
		could_not_run unit "shell scripts" "shellcheck is not installed"
	fi
	if cargo deny --version >/dev/null 2>&1; then
		step "licences, advisories" cargo deny --locked check || true
	else
		not_run "licences, advisories" "cargo-deny is not installed"
	fi
	tests_step "unit tests" cargo test --locked --lib --bins --test layering
	tests_step "documentation tests" cargo test --locked --doc
}

# Sets $programs (all integration tests) and $small (those whose source knows the
# small set, by its variable) from what cargo says that it built.
list_executables() {
	local source program
	programs=() small=()
	step "build tests" cargo test --locked --no-run --test '*' || return 1
	while read -r source program; do
		[ "$source" != tests/layering.rs ] || continue	# ran with the unit tests
		case $program in /*) ;; *) program=$PWD/$program ;; esac
		programs+=("$program")
		! grep -q RINGFENCE_TEST_SET "$source" || small+=("$program")
	done < <(sed -n 's/^ *Executable \(tests\/[^ ]*\.rs\) (\(.*\))$/\1 \2/p' "$log")
}

names_of() { printf '%s\n' "${@##*/}" | tr '\n' ' '; }

why_no_kvm() {
	if [ ! -e /dev/kvm ]; then
		echo "no /dev/kvm here"
	elif ! (: <>/dev/kvm) 2>/dev/null; then
		echo "/dev/kvm cannot be opened"
	fi
}

local_part() {
	local name reason
	name="integration tests, /dev/kvm ($(backend))"
	reason=$(why_no_kvm)
	if [ ${#programs[@]} = 0 ]; then
		could_not_run local "$name" "there are none"
	elif [ -z "$reason" ]; then
		programs_step "$name" "$(names_of "${programs[@]}")" \
			timeout 1800 scripts/test.d/executables "${programs[@]}"
	elif asked_for local; then
		could_not_run local "integration tests, /dev/kvm" "$reason"
	else
		# Not a failure in CI either: the rigs are there for machines without.
		not_run "integration tests, /dev/kvm" "$reason"
	fi
}

# Runs programs in a rig. Its own failure, 125, is no result of the tests.
rig_part() {	# part, name, program names, command
	local before=${#rows[@]} p=$passed f=$failed s=$skipped
	programs_step "${@:2}"
	if [ "$code" = 125 ]; then
		unset "rows[$before]"
		passed=$p failed=$f skipped=$s
		could_not_run "$1" "$2" "the rig failed: $(grep '^rig: ' "$log" | tail -n 1)"
	fi
}

amd_part() {
	local name="integration tests, kvm_amd (rig)"
	[ ${#programs[@]} -gt 0 ] || { could_not_run amd "$name" "there are none"; return; }
	rig_part amd "$name" "$(names_of "${programs[@]}")" \
		scripts/rig amd --timeout 2400 --env "CARGO_MANIFEST_DIR=$PWD" -- \
		"$PWD/scripts/test.d/executables" "${programs[@]}"
}

intel_part() {
	local name="integration tests, kvm_intel (rig)" program carried=() gdb path
	path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	[ ${#small[@]} -gt 0 ] || { could_not_run intel "$name" "no test knows RINGFENCE_TEST_SET=small"; return; }
	for program in "${small[@]}"; do carried+=(--add "$program"); done
	carried+=(--add "$(dirname "${small[0]}")/../ringfence" --add "$PWD/guests" --add "$PWD/tests")
	if gdb=$(gdb_to_carry); then
		carried+=(--add "$gdb/gdb" --env "PATH=$gdb:$path" --env CI)
	else
		could_not_run intel "gdb sessions, kvm_intel (rig)" "apt-get has no gdb-minimal"
	fi
	rig_part intel "$name" "$(names_of "${small[@]}")" \
		scripts/rig intel --timeout 2700 --env "CARGO_MANIFEST_DIR=$PWD" \
		--env RINGFENCE_TEST_SET=small --add "$PWD/scripts/test.d/executables" "${carried[@]}" -- \
		sh "$PWD/scripts/test.d/executables" "${small[@]}"
}
