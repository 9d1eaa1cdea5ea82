# Reads unittests.cfg, and translates what it says for QEMU. Sourced by scripts/kvm-unit-tests.
# shellcheck shell=bash disable=SC2154,SC2034  # shared with scripts/kvm-unit-tests

# One line a test: name, file, smp, test_args, qemu_params, check, timeout, arch,
# groups.
read_list() {
	awk '
	function flush() {
		if (name != "")
			printf "%s\037%s\037%s\037%s\037%s\037%s\037%s\037%s\037%s\n", name, f["file"], f["smp"],
				f["test_args"], f["qemu_params"], f["check"], f["timeout"], f["arch"], f["groups"]
		delete f; f["smp"] = 1
	}
	/^[[:space:]]*#/ { next }
	/^\[.*\]/ { flush(); name = substr($0, 2, index($0, "]") - 2); next }
	/=/ {
		key = $1; value = $0; sub(/^[^=]*=[[:space:]]*/, "", value); sub(/[[:space:]]+$/, "", value)
		if (value ~ /^".*"$/ || value ~ /^\x27.*\x27$/) value = substr(value, 2, length(value) - 2)
		f[key] = value
	}
	END { flush() }' "$1"
}

# The environment file that kvm-unit-tests hand their images, as far as it is about this host.
environment() {
	local release
	release=$(uname -r)
	printf 'KERNEL_VERSION_STRING=%s\nKERNEL_VERSION=%s\n' "$release" "${release%%.*}"
}

wanted() {
	local name
	[ ${#names[@]} -gt 0 ] || return 0
	for name in "${names[@]}"; do
		[ "$name" != "$1" ] || return 0
	done
	return 1
}

# QEMU's -cpu in ringfence's words. A named model becomes the psABI level that it has.
cpu_of() {
	local word words=()
	IFS=, read -ra words <<<"$1"
	case ${words[0]} in
	max | host)	printf max ;;
	qemu64)	printf 'x86-64-v1,+sse3,+cx16,+lahf-lm,+x2apic' ;;
	IvyBridge)	printf x86-64-v2 ;;
	Skylake-Server)	printf x86-64-v4 ;;
	*)	printf 'x86-64-v1,+sse3' ;;
	esac
	for word in "${words[@]:1}"; do
		case $word in
		# Of QEMU alone: its own limits, the names of VMX's own capabilities.
		hv_passthrough)	printf ',hyperv' ;;
		host-phys-bits* | migratable=* | [+-]vmx-*) ;;
		*)	printf ',%s' "$word" ;;
		esac
	done
}

# qemu_params as options of ringfence, into the array `options`; why not, into `reason`.
translate() {
	options=(--memory 128M --cpu "$(cpu_of qemu64)") reason=''
	local words=()
	read -ra words <<<"$1"
	set -- "${words[@]}"
	while [ $# -gt 0 ]; do
		case $1 in
		-cpu)	options[3]=$(cpu_of "$2"); shift ;;
		-m)	options[1]=$(memory_of "$2"); shift ;;
		-device)
			case $2 in
			intel-iommu* | edu)	reason="needs QEMU's intel-iommu and edu" ;;
			*)	reason="needs QEMU's ${2%%,*}" ;;
			esac
			shift ;;
		-machine | -M | -overcommit)	shift ;;	# pit=off, vmport=on, cpu-pm=on: no such option here
		-enable-kvm) ;;
		*)	reason="needs QEMU's $1" ;;
		esac
		shift
	done
}

memory_of() {
	case $1 in
	*[gG])	printf '%sG' "${1%[gG]}" ;;
	*)	printf '%sM' "${1%[mM]}" ;;
	esac
}

# Why the test is not for this machine, if it is not; as run_tests.sh has it.
unmet() {
	local pair path value built
	built=$(sed -n 's/^ARCH=//p' "$images/config.mak")
	if [ -n "$arch" ] && [ "$arch" != "$built" ]; then
		echo "$arch only"
		return
	fi
	if [[ " $groups " == *" nodefault "* ]] && [ ${#names[@]} = 0 ]; then
		echo 'only when it is named'
		return
	fi
	for pair in $check; do
		path=${pair%%=*} value=${pair#*=}
		if [ ! -f "$path" ]; then
			echo "no $path"
			return
		elif [ "$(cat "$path")" != "$value" ]; then
			echo "$path is $(cat "$path")"
			return
		fi
	done
	[ -f "$images/x86/$file" ] || echo "$file is not built"
}

# The reason that --without gives.
left_out() {
	local it
	for it in ${without[@]+"${without[@]}"}; do
		# shellcheck disable=SC2053  # a pattern
		[[ $name != ${it%%=*} ]] || { [ "$it" = "${it#*=}" ] && echo 'left out by --without' || echo "${it#*=}"; return; }
	done
}
