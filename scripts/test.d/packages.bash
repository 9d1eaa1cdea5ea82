# Finds out which Debian packages are missing and installs them when allowed to.
# Sourced by scripts/test.
# shellcheck shell=bash disable=SC2154  # scripts/test sets the options

missing_packages() {
	command -v cc >/dev/null || echo gcc
	[ -e /usr/include/stdio.h ] || echo libc6-dev
	command -v clang >/dev/null || echo clang
	command -v llvm-cov >/dev/null || echo llvm
	rust_llvm
	command -v shellcheck >/dev/null || echo shellcheck
	! wants local && ! wants amd && ! wants intel || command -v gdb >/dev/null || echo gdb
	! wants amd || scripts/rig amd --missing
	! wants intel || scripts/rig intel --missing
}

# The LLVM that reads what rustc's own LLVM counts, where Debian has it.
rust_llvm() {
	local name
	name=llvm-$(rustc -vV 2>/dev/null | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
	command -v "${name/llvm/llvm-cov}" >/dev/null || ! apt-cache show "$name" >/dev/null 2>&1 || echo "$name"
}

# Unpacks a gdb without Python, whose libraries would be more than all else that the
# machine with VT-x carries. Prints its directory.
gdb_to_carry() {
	local dir
	dir=$(realpath -m "$logs/../gdb-minimal")
	if [ ! -x "$dir/usr/bin/gdb" ]; then
		rm -rf "$dir"
		mkdir -p "$dir"
		(cd "$dir" && apt-get -qq -o APT::Sandbox::User=root download gdb-minimal &&
			dpkg-deb -x gdb-minimal_*.deb .) >&2 || return
	fi
	echo "$dir/usr/bin"
}

need_rust() {
	command -v cargo >/dev/null ||
		{ echo "test: no cargo; Rust 1.88 or newer is needed (https://rustup.rs)" >&2; exit 1; }
	if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
		echo "test: run: rustup component add rustfmt clippy" >&2
		exit 1
	fi
}

provide_packages() {
	local missing sudo='' answer=''
	need_rust
	mapfile -t missing < <(missing_packages | sort -u)
	[ ${#missing[@]} -gt 0 ] || return 0
	command -v apt-get >/dev/null ||
		{ echo "test: not a Debian; what is missing goes by these names there: ${missing[*]}" >&2; return 0; }
	[ "$(id -u)" = 0 ] || sudo=sudo
	echo "Debian packages that the tests need and that are not installed: ${missing[*]}"
	if [ -z "$yes" ]; then
		if [ ! -t 0 ]; then
			echo "test: run  $sudo apt-get install -y --no-install-recommends ${missing[*]}"
			echo "      or   scripts/test --yes"
			exit 1
		fi
		read -r -p "Install them with apt-get? [y/N] " answer
		[[ $answer == [yY]* ]] || { echo "Going on without them."; return 0; }
	fi
	$sudo apt-get -qq -o DPkg::Lock::Timeout=300 update || true
	$sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}" ||
		echo "test: apt-get failed; going on with what there is" >&2
}
