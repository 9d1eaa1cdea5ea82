# Prints the results, as a table or as JSON. Sourced by scripts/bench.
# shellcheck shell=bash disable=SC2154  # shared with scripts/bench

processor() { sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1; }

place() {	# the facts around the figures, one "key|value" a line
	cat <<PLACE
date|$(date -u +%Y-%m-%d)
machine|$(processor), $(nproc) processors
kernel|$(uname -sr)
backend|$(backend)
load|$(cut -d' ' -f1-3 /proc/loadavg)
PLACE
	if command -v qemu-system-x86_64 >/dev/null; then
		echo "qemu|$(qemu-system-x86_64 --version | sed -n '1s/.*version //p')"
	fi
}

quoted() { sed 's/[\\"]/\\&/g; s/.*/"&"/' <<<"$1"; }

print_place() {
	local key value
	place | while IFS='|' read -r key value; do
		if [ -n "$json" ]; then
			printf '  "%s": %s,\n' "$key" "$(quoted "$value")"
		else
			printf '%-8s %s\n' "$key" "$value"
		fi
	done
}

# "median minimum" in milliseconds of column $2 of subject $1, without the warm-up.
statistics() {
	awk -v i="$1" -v c="$2" -v skip="$warmup" '$1 == i && ++n > skip { print $c / 1e6 }' "$out/times" |
		sort -g | awk '{ v[NR] = $1 }
		END { h = int((NR + 1) / 2); m = NR % 2 ? v[h] : (v[h] + v[h + 1]) / 2
			printf "%.2f %.2f\n", m, v[1] }'
}

ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }

report_start() {
	local i first first_min end end_min floor_first='' floor_end='' separator=''
	if [ -n "$json" ]; then
		echo '{'
		print_place
		printf '  "runs": %s,\n  "unit": "ms",\n  "start": [' "$runs"
	else
		print_place
		printf '\n%s runs each, mixed; milliseconds from the spawn; x: times the floor\n' "$runs"
		printf '%-14s | %9s %8s %7s | %9s %8s %7s\n' '' 'to "hello"' least x 'to exit' least x
	fi
	for i in "${!names[@]}"; do
		read -r first first_min < <(statistics "$i" 2)
		read -r end end_min < <(statistics "$i" 3)
		: "${floor_first:=$first}" "${floor_end:=$end}"
		set -- "$first" "$first_min" "$(ratio "$first" "$floor_first")" \
			"$end" "$end_min" "$(ratio "$end" "$floor_end")"
		if [ -n "$json" ]; then
			printf '%s\n    {"name": %s, "command": %s,\n     ' "$separator" \
				"$(quoted "${names[i]}")" "$(quoted "${commands[i]}")"
			printf '"first": {"median": %s, "min": %s, "ratio": %s}, ' "$1" "$2" "$3"
			printf '"exit": {"median": %s, "min": %s, "ratio": %s}}' "$4" "$5" "$6"
			separator=,
		else
			printf '%-14s | %10s %8s %7s | %9s %8s %7s\n' "${names[i]}" "$@"
		fi
	done
	[ -z "$json" ] || printf '\n  ]\n}\n'
}

report_memory() {
	local i separator=''
	if [ -n "$json" ]; then
		echo '{'
		print_place
		printf '  "unit": "KiB",\n  "memory": ['
	else
		print_place
		printf '\nKiB (PSS) beyond the 128 MiB of the guest\n'
	fi
	for i in "${!names[@]}"; do
		if [ -n "$json" ]; then
			printf '%s\n    {"name": %s, "pss": %s}' "$separator" "$(quoted "${names[i]}")" "$1"
			separator=,
		else
			printf '%-14s %8s\n' "${names[i]}" "$1"
		fi
		shift
	done
	[ -z "$json" ] || printf '\n  ]\n}\n'
}
