# Runs what has no result yet, and keeps the results. Sourced by scripts/kvm-unit-tests.
# shellcheck shell=bash disable=SC2154,SC2034  # shared with scripts/kvm-unit-tests

# $logs/results.jsonl has a line a run: test, program, verdict, seconds; and of a test
# that is not run: test, why. $logs/about.json says what was run where, and has the
# list's order. $logs/running names the run that has begun and not ended.

declare -A results_of=()
has() { [ -n "${results_of[$1]:-}" ]; }

begin_results() {
	local line
	results=$logs/results.jsonl
	[ -n "$resume" ] || rm -f "$results" "$logs/about.json" "$logs/running"
	[ -f "$logs/about.json" ] || about >"$logs/about.json"
	touch "$results"
	if [ -s "$logs/running" ]; then
		record "$(cat "$logs/running")" '"verdict":"ends the machine that it runs on"'
		rm "$logs/running"
	fi
	while IFS= read -r line; do
		line=${line#\{} line=${line%%,\"verdict*}
		results_of[${line%%,\"why*}]=yes
	done <"$results"
}

about() {
	local version='' tests
	[ -z "$qemu" ] || version=$(qemu-system-x86_64 --version | sed -n '1s/.*version \([^ ]*\).*/\1/p')
	tests=$(read_list "$checkout/x86/unittests.cfg" | sed 's/\o037.*//; s/.*/"&"/' | paste -sd,)
	printf '{"backend":"%s","suite":"%s","linux":"%s","qemu":"%s","date":"%s","timeout":%s,"long":%s,"tests":[%s]}\n' \
		"$(backend)" "$(git -C "$checkout" log -1 --format=%h 2>/dev/null || echo unknown)" "$(uname -r)" \
		"$version" "$(date -u +%Y-%m-%d)" "$limit" "$long" "$tests"
}

record() { # $1: whose, the fields "test" and "program"; $2: the others
	printf '{%s,%s}\n' "$1" "$2" >>"$results"
	[ -z "$json" ] || printf '{%s,%s}\n' "$1" "$2"
}

# Runs the test under both programs; false when there is no time left for it.
one_test() {
	local options reason why ours theirs most whose=\"test\":\"$name\"
	has "$whose" || { has "$whose,\"program\":\"ringfence\"" &&
		{ [ -z "$qemu" ] || has "$whose,\"program\":\"qemu\""; }; } && return 0
	translate "$params"
	why=$(unmet)
	why=${why:-$(left_out)}
	why=${why:-$reason}
	if [ -n "$why" ]; then
		record "$whose" "\"why\":\"$why\""
		return 0
	fi
	commands
	one_run ringfence "${ours[@]}" || return 1
	[ -z "$qemu" ] || one_run qemu "${theirs[@]}"
}

one_run() { # $1: the program's name; its command
	local program=$1 verdict seconds whose="$whose,\"program\":\"$1\""
	! has "$whose" || return 0
	[ -z "$most_time" ] || [ "$SECONDS" -lt "$most_time" ] || return 1
	echo "$whose" >"$logs/running"
	run "$logs/$name.$program" "${@:2}"
	rm "$logs/running"
	record "$whose" "$(printf '"verdict":"%s","seconds":%s' "$verdict" "$seconds")"
	echo "kvm-unit-tests: $name, $program: $verdict, $seconds s" >&2
}
