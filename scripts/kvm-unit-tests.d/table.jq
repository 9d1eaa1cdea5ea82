# The table of one backend and its sums, as Markdown: results.jsonl slurped (-s).

def kinds: {
	pass: "passed", fail: "failed", exit: "ended otherwise", died: "died", time: "at the time limit",
	skip: "skipped by themselves", QEMU: "without a verdict (QEMU ended by itself)",
	ends: "ended the machine that it ran on", "not run": "not run", "not measured": "not measured"
};

# One object a test, in the list's order.
def tests($list):
	(reduce .[] as $it ({}; .[$it.test] += (
		if $it.why then {why: $it.why} else {($it.program): $it} end))) as $found
	| $list | map({test: .} + $found[.]);

def verdict(program): if .why then "not run" else .[program].verdict // "not measured" end;
# "died: triple fault" is a "died".
def kind: if startswith("not ") then . else split(" ")[0] | rtrimstr(":") end;
def seconds(program): .[program].seconds // "" | if type == "number" then . * 100 | round / 100 else . end;
def passed(program): verdict(program) == "pass";

def row: "| \(.test) | \(if .why then "not run: \(.why)" else verdict("ringfence") end) | \(verdict("qemu"))"
	+ " | \(seconds("ringfence")) | \(seconds("qemu")) |";

def has_qemu: any(.[]; .qemu);

def sums(program):
	map(verdict(program) | kind) as $found
	| kinds | to_entries
	| map(. as $kind | ($found | map(select(. == $kind.key)) | length) as $n
		| select($n > 0) | "\($n) \(.value)")
	| join(", ");

def both: map(select(passed("ringfence") and passed("qemu")));
def worse: map(select(passed("qemu") and (passed("ringfence") | not)) | .test);
def faster: both | map(select(.ringfence.seconds < .qemu.seconds));

# How many times QEMU's time is ours, the median.
def ratio: both | map(.qemu.seconds / .ringfence.seconds) | sort
	| if length == 0 then "" else .[length / 2 | floor] * 10 | round / 10 end;

def summary:
	"Passed under both: \(both | length), of which ringfence took less time in \(faster | length)"
	+ (if both == [] then "" else "; QEMU's time is \(ratio) times ringfence's (median)" end) + "."
	+ (if worse == [] then "" else " Passed under QEMU and not here: \(worse | join(", "))." end);

def place:
	"kvm-unit-tests \(.suite), Linux \(.linux | split(".")[:2] | join("."))" + (if .qemu == "" then "" else ", QEMU \(.qemu)" end)
	+ ", \(.date). Time limits: \(.timeout) s, for long ones \(.long) s.";

# One backend's row in the README: "ended otherwise" is neither passed, failed nor skipped.
def summary_row($on):
	def counts(program):
		map(verdict(program) | kind | select(startswith("not ") | not)) as $found
		| ["pass", "fail", "skip"] as $named
		| [($named[] as $kind | $found | map(select(. == $kind)) | length), ($found - $named | length)];
	[$on] + counts("ringfence") + counts("qemu")
	+ [(map(select(verdict("ringfence") | startswith("not "))) | length), "\(both | length), ringfence faster in \(faster | length)",
		if both == [] then "" else "\(ratio) times ringfence's" end]
	| "| \(join(" | ")) |";

def table:
	"| test | ringfence | QEMU | ringfence, s | QEMU, s |", "|---|---|---|---|---|", (.[] | row), "",
	"ringfence: \(sums("ringfence")).", if has_qemu then "QEMU: \(sums("qemu")).", summary else empty end;
