# Sourced by scripts/test and scripts/bench.
# shellcheck shell=bash

backend() {	# the kernel module behind /dev/kvm
	local m
	for m in kvm_intel kvm_amd kvm_pvm; do
		if [ -d /sys/module/$m ]; then echo $m; return; fi
	done
	echo "module unknown"
}
