# What the two machines share: messages, packages, the kernel and its modules,
# temporary files. Sourced by scripts/rig.
# shellcheck shell=bash disable=SC2154,SC2034  # shared with scripts/rig

die() { echo "rig: $*" >&2; exit 125; }
say() { [ -n "$quiet" ] || echo "rig: $*" >&2; }
now_ms() { local t=$EPOCHREALTIME; echo $((${t%.*}${t#*.} / 1000)); }

started=$(now_ms)
cache=${RINGFENCE_RIG_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/ringfence-rig}
export DEBIAN_FRONTEND=noninteractive

# --- Debian packages

have() {	# a command, or a file by its path or pattern
	case $1 in
	*/*)	compgen -G "$1" >/dev/null ;;
	*)	command -v "$1" >/dev/null ;;
	esac
}

apt_get() {
	local apt=(apt-get -qq -o DPkg::Lock::Timeout=300)
	[ "$(id -u)" = 0 ] || apt=(sudo "${apt[@]}")
	"${apt[@]}" "$@" >&2
}

install_packages() {
	local words=(install -y --no-install-recommends "$@")
	# Package lists that are old or absent are the usual reason of a failure.
	apt_get "${words[@]}" || { apt_get update && apt_get "${words[@]}"; }
}

# need() of the machine prints THING:PACKAGE, a line each.
missing_packages() {
	local pair
	{
		while read -r pair; do
			have "${pair%:*}" || echo "${pair##*:}"
		done < <(need)
		# A busybox that needs libraries cannot be the first process.
		! have busybox || ! ldd "$(command -v busybox)" >/dev/null 2>&1 || echo busybox-static
	} | sort -u
}

need_packages() {
	local missing sudo=''
	mapfile -t missing < <(missing_packages)
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || sudo='sudo '
	[ -n "$install" ] || die "Debian packages are missing; install them with
    ${sudo}apt-get install -y --no-install-recommends ${missing[*]}
or run scripts/rig with --install"
	say "installing ${missing[*]}"
	install_packages "${missing[@]}" || die "could not install ${missing[*]}"
	hash -r
}

# --- the kernel, from a Debian package: $cache/VERSION/{vmlinux,vmlinuz,lib}

# The "cloud" kernel is small and, since 6.12, has virtio-pci, virtio-fs and
# virtio-console built in.
newest_kernel_package() {
	apt-cache pkgnames linux-image- |
		grep -E '^linux-image-[0-9.]+(\+deb[0-9]+|\+bpo|-[0-9]+)-cloud-amd64$' |
		sort -V | tail -n 1
}

download_kernel() {	# into directory $1
	local pkg
	if [ -n "${RINGFENCE_RIG_KERNEL_DEB:-}" ]; then
		cp -- "$RINGFENCE_RIG_KERNEL_DEB" "$1/kernel.deb"
		return
	fi
	have apt-get || die "no apt-get here; RINGFENCE_RIG_KERNEL_DEB can name a linux-image package"
	apt_get update || say "the package lists could not be updated; what they offer may be old"
	pkg=$(newest_kernel_package) ||
		die "apt offers no Debian cloud kernel; RINGFENCE_RIG_KERNEL_DEB can name a package file"
	(cd "$1" && apt-get -qq -o APT::Sandbox::User=root download "$pkg" >&2) || die "cannot download $pkg"
	mv "$1"/*.deb "$1/kernel.deb"
}

# QEMU enters an uncompressed vmlinux directly (PVH), which saves the emulated
# machine the decompression: find the zstd stream inside the bzImage $1.
extract_vmlinux() {
	local off
	while IFS=: read -r off _; do
		# zstd complains of what follows the stream in the file.
		tail -c +$((off + 1)) "$1" | zstd -qdc >"$2" 2>/dev/null || true
		[ "$(head -c 4 "$2")" != $'\x7fELF' ] || return 0
	done < <(grep -abo $'\x28\xb5\x2f\xfd' "$1")
	cp "$1" "$2"	# compressed in another way: slower, and works too
}

fetch_kernel() {
	local work=$cache/work img version
	rm -rf "$work"
	mkdir -p "$work/root" "$work/new/lib/modules"
	download_kernel "$work"
	dpkg-deb -x "$work/kernel.deb" "$work/root" || die "cannot unpack the kernel package"
	img=$(compgen -G "$work/root/boot/vmlinuz-*" | head -n 1) || die "no kernel in the kernel package"
	version=${img##*/vmlinuz-}
	mv "$work"/root/{usr/,}lib/modules/"$version" "$work/new/lib/modules/" 2>/dev/null ||
		[ -d "$work/new/lib/modules/$version" ] || die "no modules in the kernel package"
	mv "$img" "$work/new/vmlinuz"
	extract_vmlinux "$work/new/vmlinuz" "$work/new/vmlinux"
	depmod -b "$work/new" "$version"
	rm -rf "${cache:?}/$version"
	mv "$work/new" "$cache/$version"
	echo "$version" >"$cache/current"
	rm -rf "$work"
}

# Sets kver and kdir. The lock, held until unlock_cache, lets one rig at a time
# fill the cache.
lock_cache() {
	mkdir -p "$cache" || die "cannot make $cache"
	exec 9>"$cache/lock"
	flock 9
	kver=$(cat "$cache/current" 2>/dev/null) || kver=''
	if [ -z "$kver" ] || [ ! -s "$cache/$kver/vmlinux" ]; then
		say "fetching a kernel into $cache"
		(fetch_kernel) || die "could not get a kernel"
		kver=$(cat "$cache/current")
	fi
	kdir=$cache/$kver
}

# Under sudo the cache stays the user's, who may run the other machine without.
unlock_cache() {
	if [ "$(id -u)" = 0 ] && [ "$(stat -c %u "$cache/..")" != 0 ]; then
		chown -R --reference="$cache/.." "$cache"
	fi
	exec 9>&-
}

# Puts the modules named after $1, and what they need, into directory $1 as plain
# NNN-NAME.ko, numbered in the order in which insmod has to take them.
stage_modules() {
	local dir=$1 n=100 word file m
	for m in "${@:2}"; do
		modprobe -d "$kdir" -S "$kver" --show-depends "$m" >"$dir/deps" ||
			die "the kernel has no module $m"
		while read -r word file _; do
			[ "$word" = insmod ] || continue	# else: builtin NAME
			m=${file##*/}
			m=${m%%.ko*}
			! compgen -G "$dir/???-$m.ko" >/dev/null || continue
			n=$((n + 1))
			case $file in
			*.xz)	xz -dc "$file" ;;
			*.zst)	zstd -qdc "$file" ;;
			*)	cat "$file" ;;
			esac >"$dir/$n-$m.ko"
			# Without debug information, type information and signature a
			# module loads in a fraction of the emulated time.
			objcopy -g -R .BTF "$dir/$n-$m.ko"
		done <"$dir/deps"
	done
	rm -f "$dir/deps"
}

write_modopts() {	# "MODULE OPTIONS", a line each; the init reads them
	local o
	for o in ${modopts[@]+"${modopts[@]}"}; do
		case $o in ?*:?*) ;; *) die "--modopt takes MODULE:OPTIONS, not $o" ;; esac
		echo "$(tr - _ <<<"${o%%:*}") ${o#*:}"
	done
}

write_exports() {	# shell lines that set the variables of --env
	local v
	echo "export RINGFENCE_RIG=$kind"
	for v in ${envs[@]+"${envs[@]}"}; do
		case $v in
		*=*)	printf 'export %s=%q\n' "${v%%=*}" "${v#*=}" ;;
		*)	[ -z "${!v+set}" ] || printf 'export %s=%q\n' "$v" "${!v}" ;;
		esac
	done
}

archive() { (cd "$1" && find . | cpio -o -H newc --quiet -R 0:0); }

# --- this run: its directory, its processes, its end

dir=''
pids=()	# children to end, in this order; nothing of theirs is worth saving
cleanup() {
	trap - EXIT INT TERM HUP
	local p
	for p in ${pids[@]+"${pids[@]}"}; do kill -9 "$p" 2>/dev/null || true; done
	for p in ${pids[@]+"${pids[@]}"}; do wait "$p" 2>/dev/null || true; done
	[ -n "$dir" ] || return 0
	if [ -n "$console" ] && [ -e "$dir/console" ]; then cp "$dir/console" "$console"; fi
	rm -rf "$dir"
}

make_dir() {
	local old pid
	# What a rig left that was ended with SIGKILL.
	for old in "${TMPDIR:-/tmp}"/ringfence-rig.*; do
		pid=$(cat "$old/pid" 2>/dev/null) || continue
		if [ -O "$old" ] && [ ! -d "/proc/$pid" ]; then rm -rf "$old"; fi
	done
	trap cleanup EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	dir=$(mktemp -d "${TMPDIR:-/tmp}/ringfence-rig.XXXXXX") || die "no temporary directory"
	echo $$ >"$dir/pid"
}

show_console() {
	echo "rig: the end of the machine's console:" >&2
	tail -n 25 "$dir/console" 2>/dev/null | tr -d '\r' >&2 || true
}

closing_line() {	# exit code, milliseconds of the command
	local all=$(($(now_ms) - started))
	say "$(printf 'exit %s; command %d.%03d s, rig %d.%03d s' "$1" \
		$(($2 / 1000)) $(($2 % 1000)) $(((all - $2) / 1000)) $(((all - $2) % 1000)))"
}
