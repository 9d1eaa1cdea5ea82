# Makes tables of the results, and puts them into the documents. Sourced by scripts/kvm-unit-tests.
# shellcheck shell=bash disable=SC2154,SC2016  # shared with scripts/kvm-unit-tests; $ of jq

query() { # $1: LOGS, $2: what to say of them, in table.jq's words; `$about` is about.json
	jq -rs -L scripts/kvm-unit-tests.d --slurpfile abouts "$1/about.json" \
		"include \"table\"; \$abouts[0] as \$about | tests(\$about.tests) | $2" "$1/results.jsonl"
}

print_table() { # of LOGS; false where a test passed under QEMU and not here
	query "$1" '($about | place), "", table'
	[ "$(query "$1" 'worse | length')" = 0 ]
}

write_documents() { # of LOGS ...
	local it
	for it; do
		[ -s "$it/results.jsonl" ] || die "$it holds no results"
		query "$it" '($about | place), "", table' |
			insert docs/kvm-unit-tests.md "$(query "$it" '$about.backend')"
	done
	{
		echo '| on | ringfence: passed | failed | skipped | ended otherwise | QEMU: passed | failed | skipped | ended otherwise | not run or not measured | passed under both | QEMU'\''s time, median |'
		echo '|---|---|---|---|---|---|---|---|---|---|---|---|'
		for it; do query "$it" '$about.backend as $on | summary_row($on)'; done
	} | insert README.md kvm-unit-tests
}

# Puts stdin between the lines "<!-- $2 -->" and "<!-- /$2 -->" of the file $1.
insert() {
	local text new
	grep -qxF "<!-- $2 -->" "$1" || die "$1 has no place for $2"
	text=$(cat)
	new=$(text=$text name=$2 awk '
		$0 == "<!-- /" ENVIRON["name"] " -->" { inside = 0 }
		!inside { print }
		$0 == "<!-- " ENVIRON["name"] " -->" { inside = 1; print ENVIRON["text"] }' "$1")
	printf '%s\n' "$new" >"$1"
}
