# The AMD machine: QEMU's TCG emulates SVM, a virtiofsd shows it this machine's
# files, and three virtio-console ports carry stdout, stderr and the exit code.
# Sourced by scripts/rig.
# shellcheck shell=bash disable=SC2154,SC2054  # scripts/rig sets the options; QEMU's have commas

virtiofsd_paths=(/usr/libexec/virtiofsd /usr/lib/qemu/virtiofsd)

need() {
	local fs=qemu-system-common	# has a virtiofsd up to QEMU 7
	[ -z "$(apt-cache -q pkgnames virtiofsd 2>/dev/null)" ] || fs=virtiofsd
	[ -e "${virtiofsd_paths[0]}" ] || echo "${virtiofsd_paths[1]}:$fs"
	cat <<'PAIRS'
qemu-system-x86_64:qemu-system-x86
busybox:busybox-static
modprobe:kmod
cpio:cpio
xz:xz-utils
zstd:zstd
objcopy:binutils
dpkg-deb:dpkg
PAIRS
}

# virtiofsd has to be root to open other users' files the way overlayfs asks for
# (O_NOATIME). The variables go over the command line, so only these do.
become_root() {
	local v keep=()
	[ "$(id -u)" != 0 ] || return 0
	have sudo || die "has to run as root, and there is no sudo"
	mkdir -p "$cache"
	for v in PATH HOME USER LOGNAME SHELL TERM LANG RUSTUP_HOME CARGO_HOME TMPDIR \
		XDG_CACHE_HOME RINGFENCE_RIG_CACHE RINGFENCE_RIG_KERNEL_DEB ${envs[@]+"${envs[@]%%=*}"}; do
		[ -z "${!v+set}" ] || keep+=("$v=${!v}")
	done
	exec sudo env "${keep[@]}" "$rig_d/../rig" "${original[@]}"
}

# The part of the initramfs that is the same in every run with these modules.
build_initramfs() {	# $1: file to write, then modules
	local work=$cache/initramfs
	rm -rf "$work"
	mkdir -p "$work"/{bin,dev,proc,sys,m,rig,tmp}
	cp "$(command -v busybox)" "$work/bin/busybox"
	install -m 755 "$rig_d/amd-init" "$work/init"
	stage_modules "$work/m" "${@:2}"
	archive "$work" >"$1.new"
	mv "$1.new" "$1"
	rm -rf "$work"
}

write_command() {	# for the shell that is process 1, in the new root
	local v err=4
	# One stream if ours are one (2>&1), so that the order of the lines is kept.
	[ "$(readlink /proc/$$/fd/1)" != "$(readlink /proc/$$/fd/2)" ] || err=3
	cat <<'CMD'
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
bb=/run/rig/busybox
# The command gets pipes, as it would from any shell; the ports themselves can
# be opened only once, which breaks things like "tee /dev/stderr".
$bb mkfifo /run/rig/o /run/rig/e
$bb cat /run/rig/o >/dev/rig.out & o=$!
$bb cat /run/rig/e >/dev/rig.err & e=$!
exec 3>/run/rig/o 4>/run/rig/e
CMD
	for v in PATH HOME USER LOGNAME SHELL TERM LANG RUSTUP_HOME CARGO_HOME; do
		[ -z "${!v:-}" ] || printf 'export %s=%q\n' "$v" "${!v}"
	done
	write_exports
	printf 'cd %q || cd /\n' "$cwd"
	echo "IFS=' ' read -r t1 _ </proc/uptime"
	# shellcheck disable=SC2016  # $bb is the machine's
	printf '$bb timeout -k 5 %d $bb setsid' "$timeout"
	printf ' %q' "${command[@]}"
	printf ' </dev/null >&3 2>&%d 3>&- 4>&-\n' "$err"
	cat <<'CMD'
rc=$?
exec 3>&- 4>&-
IFS=' ' read -r t2 _ </proc/uptime
i=0	# let the streams drain; a process left behind may hold them open
while [ $i -lt 40 ] && { kill -0 $o || kill -0 $e; } 2>/dev/null; do
	$bb usleep 25000; i=$((i + 1))
done
echo "$rc $t1 $t2" >/dev/rig.rc
$bb sync
exec $bb poweroff -f
CMD
}

prepare() {
	# The first three are built in since 6.12.
	local load=(virtio_pci virtio_console virtiofs overlay kvm kvm-amd tun vhost-net vhost-vsock)
	local hash initramfs
	[ -z "$net" ] || load+=(virtio_net)
	[ -z "$iommu" ] || load+=(vfio-pci vfio_iommu_type1)
	load+=(${modules[@]+"${modules[@]}"})
	make_dir
	lock_cache
	hash=$({ cat "$rig_d/amd-init" "$rig_d/common.bash"; echo "${load[@]}"; } | sha256sum)
	initramfs=$kdir/initramfs-${hash:0:16}.cpio
	find "$kdir" -maxdepth 1 -name 'initramfs-*' -mtime +7 -delete
	[ -s "$initramfs" ] || (build_initramfs "$initramfs" "${load[@]}") ||
		die "could not build the initramfs"
	mkdir -p "$dir/ir/rig"
	echo "$mode" >"$dir/ir/rig/mode"
	printf '%s\n' ${rw[@]+"${rw[@]}"} | sed '/^$/d' >"$dir/ir/rig/rw"
	write_modopts >"$dir/ir/rig/modopt"
	write_command >"$dir/ir/rig/cmd"
	{ cat "$initramfs"; archive "$dir/ir"; } >"$dir/initrd"
	unlock_cache
}

kernel_arguments() {
	local mhz
	printf %s "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off nokaslr" \
		" tsc=reliable no_timer_check random.trust_cpu=on"
	[ -z "$iommu" ] || printf ' intel_iommu=on'
	# QEMU hands this machine's time stamp counter through, and on a busy machine
	# the kernel inside measures its frequency wrongly, up to a factor of two.
	mhz=$(sed -n 's/^cpu MHz[^:]*: *//p' /proc/cpuinfo | head -n 1)
	if [ -n "$mhz" ] && [ ! -e /sys/devices/system/cpu/cpu0/cpufreq ]; then
		printf ' tsc_early_khz=%s' "${mhz/./}"
	fi
	# QEMU 7.2's multi-threaded translation can miss a code patch made by another
	# processor, and Linux patches its own code most of all while booting (an
	# "Oops: int3" in two boots of five). So boot with one; the init starts the rest.
	[ "$threads" = single ] || printf ' maxcpus=1'
	printf %s "$append"
}

start_virtiofsd() {
	local fs=${virtiofsd_paths[1]} cache_mode=always options
	[ ! -x "${virtiofsd_paths[0]}" ] || fs=${virtiofsd_paths[0]}
	# The machine may keep what it read for ever, unless it also writes there.
	[ "$mode${#rw[@]}" = overlay0 ] || cache_mode=auto
	if "$fs" --help 2>&1 | grep -q -- --shared-dir; then	# the one in Rust
		options=(--shared-dir=/ --sandbox=none --cache="$cache_mode" --xattr --log-level=error)
	else
		options=(-o source=/ -o sandbox=chroot -o "cache=$cache_mode" -o xattr -o log_level=err)
	fi
	setpriv --pdeathsig KILL "$fs" --socket-path="$dir/fs.sock" "${options[@]}" \
		</dev/null >"$dir/fs.log" 2>&1 &
	fs_pid=$!
	pids+=("$fs_pid")
	for _ in {1..500}; do
		[ ! -S "$dir/fs.sock" ] || return 0
		kill -0 "$fs_pid" 2>/dev/null || break
		sleep 0.02
	done
	cat "$dir/fs.log" >&2
	die "virtiofsd did not start"
}

qemu_command() {
	qemu=(qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot
		-accel "tcg,thread=$threads" -cpu "$cpu" -smp "$smp" -m "$mem"
		-object "memory-backend-memfd,id=ram,size=${mem}M,share=on"
		-kernel "$kdir/vmlinux" -initrd "$dir/initrd" -append "$(kernel_arguments)"
		-serial "file:$dir/console"
		-chardev "socket,id=fs,path=$dir/fs.sock"
		-device vhost-user-fs-pci,chardev=fs,tag=rigroot,queue-size=1024
		-chardev "file,id=out,path=$dir/out" -chardev "file,id=err,path=$dir/err"
		-chardev "file,id=rc,path=$dir/rc"
		-device virtio-serial-pci,id=vs
		-device virtserialport,bus=vs.0,nr=1,chardev=out,name=rig.out
		-device virtserialport,bus=vs.0,nr=2,chardev=err,name=rig.err
		-device virtserialport,bus=vs.0,nr=3,chardev=rc,name=rig.rc)
	if [ -n "$iommu" ]; then
		qemu+=(-machine q35,memory-backend=ram -device intel-iommu,intremap=on
			-device pcie-root-port,id=rp1,chassis=1 -device e1000e,bus=rp1
			-device pcie-root-port,id=rp2,chassis=2
			-blockdev driver=null-co,node-name=null,size=67108864,read-zeroes=on
			-device nvme,bus=rp2,serial=rig,drive=null)
	else
		qemu+=(-machine pc,memory-backend=ram)
	fi
	[ -z "$net" ] || qemu+=(-netdev user,id=net -device virtio-net-pci,netdev=net,romfile=)
}

run() {
	local qemu=() qemu_pid qemu_rc=0 cats=() rc='' up1='' up2='' ms
	local from limit=$((timeout + 180))
	from=$(now_ms)
	mkfifo "$dir/out" "$dir/err"
	cat "$dir/out" &
	cats+=("$!")
	cat "$dir/err" >&2 &
	cats+=("$!")
	pids=("${cats[@]}")
	start_virtiofsd
	qemu_command
	# The machine enforces --timeout itself; the limit here is for when it hangs.
	setpriv --pdeathsig KILL timeout --signal=KILL "$limit" \
		setpriv --pdeathsig KILL "${qemu[@]}" </dev/null >"$dir/qemu.log" 2>&1 &
	qemu_pid=$!
	pids=("$qemu_pid" "${pids[@]}")
	wait "$qemu_pid" 2>/dev/null || qemu_rc=$?
	# QEMU's end closes the pipes; if it never opened them, do that for the cats.
	: 7<>"$dir/out" 8<>"$dir/err"
	wait "${cats[@]}" 2>/dev/null || true
	[ ! -s "$dir/rc" ] || read -r rc up1 up2 <"$dir/rc" || true
	if [ -z "$rc" ]; then
		grep -v -e "warning: TCG doesn't" "$dir/qemu.log" >&2 || true
		show_console
		if [ "$qemu_rc" = 137 ] && [ $(($(now_ms) - from)) -ge $((limit * 1000)) ]; then
			echo "rig: the machine hung, and was ended" >&2
			exit 124
		fi
		die "no exit code came from the machine (QEMU's own is $qemu_rc)"
	fi
	[ "$up1" != 0 ] || { show_console; die "the machine could not be set up"; }
	ms=$(awk -v a="$up1" -v b="$up2" 'BEGIN { printf "%d", (b - a) * 1000 }')
	# Out of time shows only as the signal that ended the command.
	[ "$ms" -lt $((timeout * 1000)) ] || rc=124
	closing_line "$rc" "$ms"
	exit "$rc"
}
