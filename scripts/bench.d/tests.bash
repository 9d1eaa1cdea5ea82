# Tests a second: the sample suite under ringfence and QEMU. Sourced by scripts/bench.
# shellcheck shell=bash disable=SC2034,SC2154  # shared with scripts/bench

suite_size=200
repeats=10

# The suite as QEMU boots it: by PVH, and into long mode by itself. The flags are build.rs's.
suite_for_qemu() {
	local lib=guests/lib sources
	mapfile -t sources < <(find guests/suite -name '*.c' ! -name bad.c)
	cc -m64 -O2 -ffreestanding -fno-pic -fno-pie -mno-red-zone -mgeneral-regs-only \
		-fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables \
		-nostdlib -static -no-pie -Wl,--build-id=none,-z,noexecstack,-n,-s,--no-warn-rwx-segments \
		-I $lib -I guests/include -T $lib/elf.ld -o "$out/suite-pvh.elf" \
		$lib/pvh.S $lib/enter64.S $lib/start64.S $lib/trap.S \
		$lib/{trap,serial,print,cmdline,start_info}.c guests/suite.c \
		"${sources[@]}"
}

# Files that say the same to each: every test in a machine of its own.
separate_boots() {
	local i
	for ((i = 0; i < suite_size; i++)); do
		printf '[[test]]\nname = "%s"\nimage = "@suite"\nmailbox = false\ncmdline = "test=%s"\n\n' "$i" "$i"
	done >"$out/separate-tests.toml"
	printf '#!/bin/sh\nseq 0 %s | xargs -P %s -I @ %s\n' $((suite_size - 1)) "$(nproc)" \
		"sh -c '$1 -append test=@; [ \$? = 1 ]' || exit 1; echo done" >"$out/qemu-tests"
	chmod +x "$out/qemu-tests"
}

choose_test_subjects() {
	local ringfence="$target/x86_64-unknown-linux-gnu/release/ringfence test ${RINGFENCE_BENCH_ARGS:-}"
	local qemu="qemu-system-x86_64 -M microvm,x-option-roms=off,pit=off,pic=off,rtc=on,isa-serial=on,auto-kernel-cmdline=off -accel kvm -cpu qemu64,-sse3 -smp 1 -m 128 -nodefaults -no-user-config -display none -no-reboot -serial null -device isa-debug-exit,iobase=0xf4,iosize=4 -kernel $out/suite-pvh.elf"
	names=() expected=() commands=() spinning=() counts=()
	export XDG_CACHE_HOME=$PWD/$out	# what is remembered of other runs is not meddled with
	separate_boots "$qemu"
	test_subject "ringfence, reset" $((suite_size * repeats)) "$ringfence @suite --repeat $repeats"
	test_subject "ringfence, reset once" $suite_size "$ringfence @suite"
	test_subject "ringfence, boots" $suite_size "$ringfence $out/separate-tests.toml"
	if command -v qemu-system-x86_64 >/dev/null; then
		suite_for_qemu
		test_subject "qemu, boots" $suite_size "$out/qemu-tests"
	else
		echo "bench: QEMU is not installed: not measured" >&2
	fi
}

test_subject() {	# name, tests in a run, command
	subject "$1" 0 "$3" ''
	counts+=("$2")
}

report_tests() {
	local i median least separator=''
	if [ -n "$json" ]; then
		echo '{'
		print_place
		printf '  "runs": %s,\n  "unit": "tests/s",\n  "tests": [' "$runs"
	else
		print_place
		printf '\n%s runs each, mixed; tests a second with everything, from the spawn to the exit\n' "$runs"
		printf '%-22s | %8s %8s | %8s\n' '' median best tests
	fi
	for i in "${!names[@]}"; do
		read -r median least < <(statistics "$i" 3)
		set -- "$(rate "${counts[i]}" "$median")" "$(rate "${counts[i]}" "$least")" "${counts[i]}"
		if [ -n "$json" ]; then
			printf '%s\n    {"name": %s, "median": %s, "best": %s, "tests": %s}' "$separator" \
				"$(quoted "${names[i]}")" "$@"
			separator=,
		else
			printf '%-22s | %8s %8s | %8s\n' "${names[i]}" "$@"
		fi
	done
	[ -z "$json" ] || printf '\n  ]\n}\n'
}

rate() { awk -v n="$1" -v ms="$2" 'BEGIN { printf "%.0f", n / ms * 1000 }'; }
