# Runs steps, remembers what became of them, and prints the table at the end.
# Sourced by scripts/test.
# shellcheck shell=bash disable=SC2154  # scripts/test sets $logs

rows=()	# name|outcome|passed|failed|skipped|seconds
failures=()	# what the tests that failed said, a text a step
passed=0 failed=0 skipped=0

row() {	# name, outcome, passed, failed, skipped, seconds
	rows+=("$1|$2|$3|$4|$5|$6")
	passed=$((passed + ${3:-0}))
	failed=$((failed + ${4:-0}))
	skipped=$((skipped + ${5:-0}))
}

not_run() { row "$1" "not run: $2" '' '' '' ''; }

# A part that could not run: a failure where it had to.
could_not_run() {	# part, name, reason
	if must_run "$1"; then row "$2" "failed: $3" 0 1 0 ''; else not_run "$2" "$3"; fi
}

# Runs a command, shows and logs its output. Sets $code, $seconds and $log.
logged() {
	local from=$SECONDS
	log=$logs/${1//[^a-zA-Z0-9]/-}.log
	printf '\n== %s: %s\n' "$1" "${*:2:6}"
	code=0
	"${@:2}" 2>&1 | tee "$log" || code=${PIPESTATUS[0]}
	seconds=$((SECONDS - from))
}

# A step without tests of its own: done, or one failure.
step() {
	logged "$@"
	if [ "$code" = 0 ]; then row "$1" ok '' '' '' "$seconds"; return; fi
	failures+=("$1, its last lines:"$'\n'"$(tail -n 30 "$log" | sed 's/^/    /')")
	row "$1" "failed (exit $code)" '' 1 '' "$seconds"
	return 1
}

# Sums what the test programs printed: "passed failed ignored results".
count_results() {
	awk '/^test result: / {
		n++
		for (i = 1; i < NF; i++) {
			if ($(i + 1) ~ /^passed/) p += $i
			if ($(i + 1) ~ /^failed/) f += $i
			if ($(i + 1) ~ /^ignored/) s += $i
		}
	}
	END { print p + 0, f + 0, s + 0, n + 0 }' "$1"
}

# What the failed tests of a log said, or else its last lines: said once more at
# the end, where a person looks first, and which a log that was cut still has.
keep_failures() {	# step, log
	local text
	text=$(tr -d '\r' <"$2" | awk '
		/^-- [^ ]+$/ { program = $2 }
		/^test .* \.\.\. FAILED$/ { print "FAILED " (program ? program ": " : "") $2; n = 0 }
		/^---- .* ----$/ { inside = 1; n = 0 }
		/^failures:$/ || /^test result: / { inside = 0 }
		/^ +[0-9]+: / || /^ +at / { next }	# a backtrace of the test itself
		inside && n++ < 60 { print "    " $0 }')
	[ -n "$text" ] || text=$(tail -n 30 "$2" | sed 's/^/    /')
	failures+=("$1:"$'\n'"$text")
}

# A step whose programs print "test result:". One that ends badly without
# counting a failure, or never says a result, is a failure by itself.
tests_step() {
	local p f s n
	logged "$@"
	read -r p f s n < <(count_results "$log")
	if [ "$n" = 0 ] || { [ "$code" != 0 ] && [ "$f" = 0 ]; }; then f=$((f + 1)); fi
	[ "$f" = 0 ] || keep_failures "$1" "$log"
	row "$1" "$([ "$f" = 0 ] && echo ok || echo failed)" "$p" "$f" "$s" "$seconds"
}

# The log of test.d/executables: each program has to begin, print a result and
# end; one that did not (a crash, a time limit) is one more failure.
unfinished_programs() {	# log, names
	local log=$1 name
	shift
	for name; do
		tr -d '\r' <"$log" | awk -v name="$name" '
			$0 == "-- " name { inside = 1; next }
			/^-- [^ ]+ ended / { if ($2 == name) { code = $4; ended = 1 } inside = 0 }
			inside && /^test result: / { results++; if (/FAILED/) said = 1 }
			END { exit !(ended && results && (code == 0 || said)) }' || echo "$name"
	done
}

programs_step() {	# name, program names as one word, command
	local p f s n name
	logged "$1" "${@:3}"
	read -r p f s n < <(count_results "$log")
	# shellcheck disable=SC2086  # names, apart
	for name in $(unfinished_programs "$log" $2); do
		echo "test: $name did not end with a result of its own" >&2
		failures+=("$1: $name did not end with a result of its own")
		f=$((f + 1))
	done
	if [ "$code" != 0 ] && [ "$f" = 0 ]; then f=1; fi
	[ "$f" = 0 ] || keep_failures "$1" "$log"
	row "$1" "$([ "$f" = 0 ] && echo ok || echo failed)" "$p" "$f" "$s" "$seconds"
}

finish() {
	local line name outcome p f s t width=0
	if [ ${#failures[@]} -gt 0 ]; then printf '\n== failures\n%s\n' "$(printf '%s\n' "${failures[@]}")"; fi
	for line in "${rows[@]}"; do
		name=${line%%|*}
		[ "${#name}" -le "$width" ] || width=${#name}
	done
	printf '\n%-*s %7s %7s %7s %7s  %s\n' "$width" '' passed failed skipped seconds ''
	for line in "${rows[@]}"; do
		IFS='|' read -r name outcome p f s t <<<"$line"
		printf '%-*s %7s %7s %7s %7s  %s\n' "$width" "$name" "$p" "$f" "$s" "$t" "$outcome"
	done
	line="$passed passed, $failed failed"
	[ "$skipped" = 0 ] || line+=", $skipped skipped"
	printf '\n%s\n' "$line"
	[ "$failed" = 0 ] && [ "$passed" -gt 0 ]	# nothing ran: nothing was shown
	exit
}
