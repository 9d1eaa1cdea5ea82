# What is measured: builds it and says how it is run. Sourced by scripts/bench.
# shellcheck shell=bash disable=SC2034,SC2154  # shared with scripts/bench

target=${CARGO_TARGET_DIR:-target}
out=$target/bench
warmup=3

guest_image() {	# name, options of cc
	cc -m32 -nostdlib -static -Wl,--build-id=none,-N,-Ttext=0x100000 \
		-Wl,--section-start=.note.pvh=0x100100,--no-warn-rwx-segments \
		"${@:2}" -o "$out/$1.elf" scripts/bench.d/hello.S
	objcopy -O binary -j .text "$out/$1.elf" "$out/$1.bin"
}

rom_image() {	# name, options of cc
	cc -m32 -c "${@:2}" -o "$out/$1.o" scripts/bench.d/hello-rom.S
	objcopy -O binary -j .text "$out/$1.o" "$out/$1.bin"
}

build_subjects() {
	mkdir -p "$out"
	cargo build --locked --release --quiet || die "cargo build failed"
	cc -O2 -static -o "$out/floor" scripts/bench.d/floor.c
	cc -O2 -o "$out/spawn-time" scripts/bench.d/spawn-time.c
	guest_image hello
	guest_image spin -DSPIN
	rom_image hello-rom
	rom_image spin-rom -DSPIN
}

# name, expected exit code, command, command with a guest that spins
subject() {
	names+=("$1")
	expected+=("$2")
	commands+=("$3")
	spinning+=("$4")
}

# qemu64 and not "host", which asks some KVMs for more than they have.
choose_subjects() {
	local ringfence="$target/x86_64-unknown-linux-gnu/release/ringfence run --memory 128M --entry protected ${RINGFENCE_BENCH_ARGS:-}"
	local qemu="qemu-system-x86_64 -M microvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on,auto-kernel-cmdline=off
		-accel kvm -cpu qemu64 -smp 1 -m 128 -nodefaults -no-user-config -display none -no-reboot
		-serial stdio -device isa-debug-exit,iobase=0xf4,iosize=4"
	qemu=${qemu//[$'\n\t']/ }
	names=() expected=() commands=() spinning=()
	subject floor 0 "$out/floor" "$out/floor --spin"
	subject "floor --cpuid" 0 "$out/floor --cpuid" "$out/floor --cpuid --spin"
	subject ringfence 0 "$ringfence $out/hello.bin" "$ringfence $out/spin.bin"
	if ! command -v qemu-system-x86_64 >/dev/null; then
		echo "bench: QEMU is not installed: not measured" >&2
		return
	fi
	# isa-debug-exit ends with twice the guest's code plus one.
	subject qemu 1 "$qemu -kernel $out/hello.elf" "$qemu -kernel $out/spin.elf"
	subject "qemu, bare" 1 "$qemu -bios $out/hello-rom.bin" "$qemu -bios $out/spin-rom.bin"
}

# Every run of a subject has to end as expected, and to have said something.
check_codes() {
	local i
	for i in "${!names[@]}"; do
		awk -v i="$i" -v want="${expected[i]}" '$1 == i && ($4 != want || $2 < 0) { exit 1 }' "$out/times" || {
			tail -n 5 "$out/errors" >&2
			die "${names[i]}: a run ended with another code than ${expected[i]}, or said nothing: ${commands[i]}"
		}
	done
}

# KiB of PSS of a process without its guest's memory: the mapping of 128 MiB, or
# of a memfd.
memory_of() {	# command
	local pid words pss i
	read -r -a words <<<"$1"
	: >"$out/spin.out"
	"${words[@]}" </dev/null >"$out/spin.out" 2>"$out/errors" &
	pid=$!
	for i in {1..200}; do
		[ ! -s "$out/spin.out" ] || break
		sleep 0.05
	done
	sleep 0.5
	pss=$(awk '
		/^[0-9a-f]+-[0-9a-f]+ / { guest = $6 ~ /^\/memfd:/; next }
		/^Size:/ && $2 == 131072 { guest = 1 }
		/^Pss:/ && !guest { sum += $2 }
		END { print sum + 0 }' "/proc/$pid/smaps" 2>/dev/null) || pss=0
	kill "$pid" 2>/dev/null || true
	wait "$pid" 2>/dev/null || true
	if [ "$i" = 200 ] || [ "$pss" = 0 ]; then
		cat "$out/errors" >&2
		die "no hello from: $1"
	fi
	echo "$pss"
}
