# The Intel machine: Bochs emulates VMX with EPT. It boots a CD-ROM made for this
# run (GRUB, kernel, initramfs); its second serial port carries the command's
# output, between two lines that start with a mark. Sourced by scripts/rig.
# shellcheck shell=bash disable=SC2154,SC2034  # shared with scripts/rig

need() {
	cat <<'PAIRS'
bochs-bin:bochs
/usr/lib/*/bochs/plugins/libbx_term_gui.so*:bochs-term
/usr/share/bochs/BIOS-bochs-latest:bochsbios
/usr/share/vgabios/vgabios.bin:vgabios
/usr/lib/grub/i386-pc/multiboot.mod:grub-pc-bin
grub-mkrescue:grub-common
xorriso:xorriso
mformat:mtools
busybox:busybox-static
modprobe:kmod
cpio:cpio
xz:xz-utils
zstd:zstd
objcopy:binutils
ldd:libc-bin
dpkg-deb:dpkg
PAIRS
}

carry_libraries() {	# of the program $1
	local lib
	# What is no dynamic program has none.
	{ ldd "$1" 2>/dev/null || true; } | { grep -o '/[^ ]*' || true; } | while read -r lib; do
		mkdir -p "$root$(dirname "$lib")"
		[ -e "$root$lib" ] || cp -L "$lib" "$root$lib"
	done
}

carry() {	# the file or directory $1, to its own path
	local program
	mkdir -p "$root$(dirname "$1")"
	if [ -d "$1" ]; then
		cp -a -- "$1" "$root$(dirname "$1")/"
		while IFS= read -r program; do
			carry_libraries "$program"
		done < <(find "$1" -type f -perm -u+x)
	else
		cp -L -- "$1" "$root$1"
		carry_libraries "$1"
		# Debug information is most of a test program, and the emulated CD-ROM
		# is slow. Only of what runs here: an image for a guest stays as it is.
		! ldd "$1" >/dev/null 2>&1 || objcopy -g "$root$1"
	fi
}

write_command() {
	echo 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root'
	write_exports
	printf 'cd %q\n' "$cwd"
	printf 'exec'
	printf ' %q' "$program" "${command[@]:1}"
	echo
}

write_grub_menu() {
	local arguments="console=ttyS0,115200 quiet panic=-1 mitigations=off nokaslr no_timer_check"
	# What costs seconds here and serves no test: self-tests of the ciphers, the
	# jitter entropy source, the names of trace events, a calibration loop.
	arguments+=" random.trust_cpu=on cryptomgr.notests lpj=1000000"
	arguments+=" initcall_blacklist=jent_mod_init,trace_eval_init"
	cat <<GRUB
set timeout=0
menuentry rig {
	linux /boot/vmlinuz $arguments$append
	initrd /boot/initrd.gz
}
GRUB
}

write_bochsrc() {
	# ips ties the clock to the instructions; 100 million a second is about what
	# Bochs does. A FIFO as com2 brings the output while it is written.
	cat <<RC
config_interface: textconfig
display_library: term
memory: guest=$mem, host=$mem
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
cpu: model=$cpu, count=$smp, ips=100000000, reset_on_triple_fault=0, ignore_bad_msrs=1
ata0-master: type=cdrom, path=$dir/rig.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$dir/console
com2: enabled=1, mode=file, dev=$dir/output
log: $dir/log
panic: action=fatal
error: action=ignore
info: action=ignore
clock: sync=none
speaker: enabled=0
RC
}

prepare() {
	local root path
	program=$(type -P "${command[0]}") || die "no command ${command[0]}"
	program=$(realpath -s -- "$program")
	make_dir
	root=$dir/root
	mkdir -p "$root"/{bin,m,proc,sys,dev,tmp,run,root,rig,"$cwd"}
	lock_cache
	cp "$(command -v busybox)" "$root/bin/busybox"
	stage_modules "$root/m" kvm kvm-intel ${modules[@]+"${modules[@]}"}
	mkdir -p "$dir/iso/boot/grub"
	cp "$kdir/vmlinuz" "$dir/iso/boot/"
	unlock_cache
	install -m 755 "$rig_d/intel-init" "$root/init"
	for path in "$program" ${add[@]+"${add[@]}"}; do carry "$path"; done
	mark=rig-$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')
	echo "$mark" >"$root/rig/mark"
	write_modopts >"$root/rig/modopt"
	write_command >"$root/rig/cmd"
	archive "$root" | gzip -1 >"$dir/iso/boot/initrd.gz"
	write_grub_menu >"$dir/iso/boot/grub/grub.cfg"
	grub-mkrescue -o "$dir/rig.iso" "$dir/iso" >"$dir/grub.log" 2>&1 ||
		{ cat "$dir/grub.log" >&2; die "grub-mkrescue failed"; }
	rm -rf "$root" "$dir/iso"
	write_bochsrc >"$dir/bochsrc"
	echo c >"$dir/rc"	# for a Bochs with a debugger: continue
}

# Copies what stands between the marks from stdin to stdout, line by line, and
# leaves the times and the exit code as files. The newline before the end mark is
# the mark's own, so each newline is printed only when the next line is there.
relay() {
	local line separator='' in_command=''
	while IFS= read -r line || [ -n "$line" ]; do
		case $line in
		"$mark start"*)
			in_command=1
			now_ms >"$dir/start" ;;
		"$mark end "*)
			now_ms >"$dir/end"
			line=${line##* }
			echo "${line%$'\r'}" >"$dir/code"
			kill -9 "$(cat "$dir/bochs.pid")" 2>/dev/null || true
			break ;;
		*)
			[ -n "$in_command" ] || continue
			printf '%s%s' "$separator" "$line"
			separator=$'\n' ;;
		esac
	done
	cat >/dev/null	# a writer must not meet a closed pipe
}

# Ends Bochs when the machine does not reach the command in time, or the command
# does not end in time.
limits() {
	local i=0 from=''
	while sleep 1 && kill -0 $$ 2>/dev/null; do
		i=$((i + 1))
		if [ -z "$from" ] && [ -e "$dir/start" ]; then from=$i; fi
		if [ -z "$from" ]; then [ "$i" -gt 600 ] || continue; : >"$dir/no-start"
		else [ $((i - from)) -gt "$timeout" ] || continue; : >"$dir/late"; fi
		kill -9 "$(cat "$dir/bochs.pid")"
		return
	done
}

# Debian's Bochs draws its text screen on a pseudo-terminal that it opens itself
# and names on stderr. Once that is full, Bochs waits for a reader, for ever.
drain_screen() {
	local screen
	for _ in {1..600}; do
		screen=$(sed -n 's/.*connected to screen "\(.*\)".*/\1/p' "$dir/bochs.out")
		[ -z "$screen" ] || break
		sleep 0.1
	done
	[ -n "$screen" ] || return 0
	stty -F "$screen" raw -echo
	exec cat "$screen"
}

run() {
	local machine reader
	mkfifo "$dir/output"
	relay <"$dir/output" &
	reader=$!
	TERM=xterm setpriv --pdeathsig KILL bochs-bin -q -f "$dir/bochsrc" -rc "$dir/rc" \
		</dev/null >"$dir/bochs.out" 2>&1 &
	machine=$!
	echo "$machine" >"$dir/bochs.pid"
	limits </dev/null >/dev/null 2>&1 &
	pids=("$machine" "$!" "$reader")
	drain_screen </dev/null >/dev/null 2>&1 &
	pids+=("$!")
	wait "$machine" 2>/dev/null || true
	: 7<>"$dir/output"	# if Bochs never opened it
	wait "$reader" || true
	finish
}

finish() {
	local code
	if [ -s "$dir/code" ]; then
		code=$(cat "$dir/code")
		closing_line "$code" $(($(cat "$dir/end") - $(cat "$dir/start")))
		exit "$code"
	fi
	if [ -e "$dir/late" ]; then
		show_console
		echo "rig: out of time ($timeout s)" >&2
		exit 124
	fi
	show_console
	grep -a PANIC "$dir/log" >&2 || true
	[ ! -e "$dir/no-start" ] || die "the machine did not start in 600 s"
	die "the machine ended without the command's exit code"
}
