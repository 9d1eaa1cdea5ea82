# Runs one test under one program. Sourced by scripts/kvm-unit-tests.
# shellcheck shell=bash disable=SC2154,SC2034,SC2054  # shared with scripts/kvm-unit-tests

# The commands, as arrays `ours` and `theirs`, and their time limit, `most`; `options` is what
# translate made.
commands() {
	local image=$images/x86/$file
	most=$limit
	# shellcheck disable=SC2016  # it stands so in the list: the time when the test begins
	local args=${args//'`date +%s`'/$(date +%s)}
	[ "${limits:-0}" -le 60 ] || most=$long
	ours=("$ringfence" run "$image" --cpus "$smp" "${options[@]}" --cmdline "$args"
		--module "$logs/env" --timeout "${most}s" --exit-code=qemu --autopsy=off)
	local words=()
	read -ra words <<<"$params"
	# As x86/run of kvm-unit-tests has it.
	theirs=(timeout -k 5 "$most" qemu-system-x86_64 --no-reboot -nodefaults
		-global kvm-pit.lost_tick_policy=discard -device pc-testdev
		-device isa-debug-exit,iobase=0xf4,iosize=0x4 -display none -serial stdio
		-device pci-testdev -machine accel=kvm -kernel "$image" -smp "$smp" "${words[@]}"
		-initrd "$logs/env")
	[ -z "$args" ] || theirs+=(-append "$args")
}

print_commands() {
	local options reason why
	translate "$params"
	why=$(unmet)
	if [ -n "$why$reason" ]; then
		echo "# $name: ${why:-$reason}"
		return
	fi
	local ours theirs most
	commands
	printf '%s:' "$name"
	printf ' %q' "${ours[@]}"
	echo
	[ -z "$qemu" ] || { printf '%s:' "$name"; printf ' %q' "${theirs[@]}"; echo; }
}

# Runs the command, its output into the file $1. Sets `verdict` and `seconds`.
run() {
	local log=$1 begin end status=0 pid watcher
	shift
	begin=${EPOCHREALTIME/./}
	"$@" </dev/null >"$log" 2>&1 &
	pid=$!
	end_where_it_stopped "$log" $pid &
	watcher=$!
	wait $pid || status=$?
	end=${EPOCHREALTIME/./}
	{ kill $watcher && wait $watcher; } 2>/dev/null || :
	seconds=$(awk -v us=$((end - begin)) 'BEGIN { printf "%.2f", us / 1e6 }')
	verdict=$(judge "$log" "$status")
	# QEMU ends with 0 when it is told to end, and not every timeout(1) with 124 then.
	[ "$status" != 0 ] || [ "${seconds%.*}" -lt "$most" ] || verdict='time limit'
}

# Where KVM cannot go on QEMU stops its machine and waits: that would last to the time limit.
end_where_it_stopped() {
	while sleep 1; do
		! grep -q '^KVM internal error' "$1" || kill "$2" 2>/dev/null
	done
}

# The verdict of a run: its output, its exit status.
judge() {
	local summary
	if grep -q '^KVM internal error\|^ringfence: guest died: instruction KVM' "$1"; then
		echo 'died: instruction'
		return
	fi
	summary=$(tr -d '\r' <"$1" | sed -n 's/^SUMMARY: //p' | tail -n 1)
	case $2 in
	1)	if grep -qv '^qemu-system-x86_64: ' "$1"; then echo pass; else echo 'QEMU refuses its options'; fi ;;
	3)	echo "fail $(counts "$summary")" ;;
	77)	echo skip ;;	# 38, as lib/report.c has it
	80)	echo 'died: triple fault' ;;
	124 | 137)	echo 'time limit' ;;
	134)	echo 'QEMU aborts' ;;
	127)	echo 'fail: exception' ;;	# 191, as lib/abort.c has it: an assertion, or an exception that nobody expected
	0)	echo 'died: reset or power-off' ;;
	*)	echo "exit status $2" ;;
	esac
}

# "57 tests, 3 unexpected failures, ..." -> "3 of 57"
counts() {
	sed -n 's/^\([0-9]*\) tests.*, \([0-9]*\) unexpected failures.*/\2 of \1/p' <<<"$1"
}
