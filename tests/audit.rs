//! `ringfence audit` through the binary: every cell of tests/audit.table, one test an instruction,
//! and what is said of the whole. One audit serves all of them.
//!
//! `RINGFENCE_TEST_SET=small`, for the slow VT-x rig, leaves a second audit out.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::OnceLock;

use libtest_mimic::{Arguments, Failed, Trial};
use ringfence::audit::Difference;
use ringfence::audit::context::CONTEXTS;
use ringfence::audit::report::{Entered, Leak, Ran, Report, SCHEMA, Whose};
use ringfence::audit::table::INSTRUCTIONS;
use ringfence::kvm::Backend;
use serde_json::Value;

const TABLE: &str = include_str!("audit.table");

/// The row of what leaks, which is no instruction.
const LEAKS: &str = "(leaks)";

struct Row {
    name: &'static str,
    /// A word a context, or of the leaks: their names.
    words: Vec<&'static str>,
}

/// The processors on which kvm_pvm was looked at: the vendor, and flags without which some cells
/// are others.
const TRIED: &[&[&str]] =
    &[&["AuthenticAMD"], &["GenuineIntel", "cpuid_fault", "fsgsbase", "rdpid", "umip", "xsaves"]];

/// The rows of the machine that this is, and why there are none.
fn rows() -> Result<Vec<Row>, String> {
    let backend = Backend::detect().name();
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let known = match backend {
        "kvm_pvm" => TRIED.iter().any(|them| them.iter().all(|it| has(&processor, it))),
        _ => std::env::var_os("RINGFENCE_RIG").is_some(),
    };
    if !known {
        return Err(format!("the table has nothing of {backend} on this processor"));
    }
    let lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut rows = BTreeMap::new();
    for line in lines {
        let columns: Vec<_> = line.split('|').map(str::trim).collect();
        let &[place, name, words] = &columns[..] else {
            return Err(format!("the table has a line that is none: {line}"));
        };
        let (on, flag) = place.split_once(' ').map_or((place, None), |(on, it)| (on, Some(it)));
        if on != backend || flag.is_some_and(|flag| !has(&processor, flag)) {
            continue;
        }
        let separator = if name == LEAKS { ';' } else { ' ' };
        let words = words.split(separator).map(str::trim).filter(|word| !word.is_empty());
        let words = words.map(|word| on_this(word, &processor)).collect();
        // What is said of a processor counts more than what is said of all.
        let row = rows.entry(name).or_insert((flag, Row { name, words: Vec::new() }));
        if row.0.is_none() || flag.is_some() {
            *row = (flag, Row { name, words });
        }
    }
    Ok(rows.into_values().map(|(_, row)| row).collect())
}

/// Does /proc/cpuinfo have this word, a flag or a vendor?
fn has(processor: &str, word: &str) -> bool {
    processor.split_whitespace().any(|it| it == word)
}

/// `A/FLAG:B` is B where the processor has what /proc/cpuinfo calls FLAG, and A elsewhere.
fn on_this(word: &'static str, processor: &str) -> &'static str {
    let choice = word.split_once('/').and_then(|(a, rest)| Some((a, rest.split_once(':')?)));
    match choice {
        Some((_, (flag, with))) if has(processor, flag) => with,
        Some((without, _)) => without,
        None => word,
    }
}

fn main() -> ExitCode {
    println!("backend {}", Backend::detect().name());
    let small = std::env::var("RINGFENCE_TEST_SET").is_ok_and(|set| set == "small");
    if small {
        println!("not run: two audits of the same host, compared: the small set has one audit");
    }
    let mut trials = vec![
        Trial::test("the JSON is what its schema says", schema),
        Trial::test("the exit code says whether something leaks", exit_code),
        Trial::test("every instruction is tried wherever it exists", complete),
        Trial::test("a leak has a cell, a leaf, an MSR or a clock that shows it", leaks_are_shown),
        Trial::test("costs are there, and an exit costs more than a NOP", costs),
        Trial::test("exits have the reasons that the kernel traced", reasons),
        Trial::test("text and page tell the same", text_and_page),
        Trial::test("an audit compared with itself does not differ", compare_same),
        Trial::test("two audits compared", compare_other),
        Trial::test("each field counts in a comparison", compare_fields),
        Trial::test("costs that differ, compared", compare_costs),
        Trial::test("two audits of the same host, compared", compare_again)
            .with_ignored_flag(small),
        Trial::test("a masked feature that shows is a leak", masks),
        Trial::test("a feature is there where CPUID shows it", features_as_shown),
        Trial::test("what is neither the guest's nor the host's is not the host's", constants),
        Trial::test("what runs untrapped acts on the guest's own state, or leaks", theory),
        Trial::test("the machine's own MSRs are written, and what is unknown is said", msrs),
        Trial::test("whose the clocks are", clocks),
        Trial::test("reasons of this KVM's are explained", explain_why),
        Trial::test("an instruction explained", explain),
        Trial::test("bad input is one clear line", bad_input),
        Trial::test("without KVM", no_kvm),
    ];
    match rows() {
        Err(reason) => {
            println!("not run: the cells of the table: {reason}");
            trials.push(Trial::test("the cells of the table", || Ok(())).with_ignored_flag(true));
        }
        Ok(rows) => {
            let names: Vec<_> = rows.iter().map(|row| row.name).collect();
            trials.push(Trial::test("the table has every instruction", move || {
                let missing = INSTRUCTIONS.iter().find(|row| !names.contains(&row.name));
                missing.map_or(Ok(()), |row| Err(format!("not {}", row.name).into()))
            }));
            trials.extend(rows.into_iter().map(|row| Trial::test(row.name, move || check(&row))));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    command.args(args).stdin(Stdio::null());
    command.output().expect("cannot run ringfence")
}

struct Audit {
    output: Output,
    page: String,
    report: Result<Report, String>,
}

/// The one audit.
fn audit() -> &'static Audit {
    static AUDIT: OnceLock<Audit> = OnceLock::new();
    AUDIT.get_or_init(|| {
        let scratch = std::env::temp_dir().join(format!("ringfence-audit-{}", std::process::id()));
        let output = run(&["audit", "--json", "--html", &scratch.display().to_string()]);
        let page = std::fs::read_to_string(&scratch).unwrap_or_default();
        let _ = std::fs::remove_file(&scratch);
        let report = Report::parse(&String::from_utf8_lossy(&output.stdout));
        Audit { output, page, report }
    })
}

fn report() -> Result<&'static Report, Failed> {
    let audit = audit();
    audit
        .report
        .as_ref()
        .map_err(|e| format!("{e}\n{}", String::from_utf8_lossy(&audit.output.stderr)).into())
}

fn check(row: &Row) -> Result<(), Failed> {
    let report = report()?;
    let got: Vec<String> = if row.name == LEAKS {
        report.leaks.iter().map(|leak| format!("{} {}", leak.by, leak.contexts.join(" "))).collect()
    } else {
        let word = |name| report.cell(row.name, name).map_or(".".to_owned(), |cell| cell.word());
        CONTEXTS.iter().map(|context| word(context.name)).collect()
    };
    if got == row.words {
        return Ok(());
    }
    let sentences = report.instructions.iter().find(|other| other.name == row.name);
    let sentences = sentences.into_iter().flat_map(|row| &row.cells);
    let sentences: Vec<_> = sentences
        .map(|cell| format!("{}: {} {:?}", cell.context, cell.sentence(), cell.words))
        .collect();
    let (wanted, got) = (row.words.join(" "), got.join(" "));
    Err(format!("wanted {wanted}\ngot    {got}\n{}", sentences.join("\n")).into())
}

/// Where the kernel's tracing can be used, an exit of CPUID's is called that; the rigs can.
fn reasons() -> Result<(), Failed> {
    let report = report()?;
    let cell = report.cell("cpuid", "long/3").ok_or("no CPUID")?;
    let cost = report.costs.iter().find(|cost| cost.name == "out").ok_or("no OUT")?;
    let told = |reasons: &[String], word| {
        reasons.iter().any(|reason| reason.to_lowercase().contains(word))
    };
    match &report.host.exit_reasons_untold {
        None if told(&cell.reasons, "cpuid") && told(&cost.reasons, "io") => Ok(()),
        Some(why) if why.contains("tracefs") && std::env::var_os("RINGFENCE_RIG").is_none() => {
            Ok(())
        }
        Some(why) if why.contains("kvm_exit") && report.host.backend == "kvm_pvm" => Ok(()),
        _ => Err(format!("{:?} {cell:?} {cost:?}", report.host).into()),
    }
}

fn schema() -> Result<(), Failed> {
    let value: Value = serde_json::from_slice(&audit().output.stdout)?;
    let validator = jsonschema::validator_for(&serde_json::from_str::<Value>(SCHEMA)?)?;
    if let Some(error) = validator.iter_errors(&value).next() {
        return Err(format!("{error} at {}", error.instance_path()).into());
    }
    let help = run(&["help", "audit-report"]);
    if help.stdout == SCHEMA.as_bytes() { Ok(()) } else { Err("help prints another".into()) }
}

fn exit_code() -> Result<(), Failed> {
    let wanted = i32::from(!report()?.leaks.is_empty());
    let got = audit().output.status.code();
    if got == Some(wanted) { Ok(()) } else { Err(format!("{got:?} instead of {wanted}").into()) }
}

fn complete() -> Result<(), Failed> {
    let report = report()?;
    for row in INSTRUCTIONS {
        for context in CONTEXTS {
            let is_there = report.cell(row.name, context.name).is_some();
            if is_there != row.bytes_in(*context).is_some() {
                return Err(format!("{} in {}: {is_there}", row.name, context.name).into());
            }
        }
    }
    if report.msrs.len() < 40 || report.cpuid.leaves < 20 {
        return Err(format!("{} MSRs, {} leaves", report.msrs.len(), report.cpuid.leaves).into());
    }
    let long = report.contexts.iter().filter(|context| context.name.starts_with("long"));
    assert!(long.clone().count() == 2 && long.clone().all(|context| context.nop_cycles.is_some()));
    Ok(())
}

fn leaks_are_shown() -> Result<(), Failed> {
    let report = report()?;
    for leak in &report.leaks {
        let shown = leak.contexts.iter().all(|context| {
            let cell = report.cell(&leak.by, context).and_then(|cell| cell.seen.as_ref());
            let leaf = |leaf: &&ringfence::audit::report::WrongLeaf| leaf.context == *context;
            cell.is_some_and(|seen| seen.whose == Whose::Host)
                || leak.by == "cpuid" && report.cpuid.wrong.iter().any(|it| leaf(&it))
                || report
                    .msrs
                    .iter()
                    .any(|msr| msr.name == leak.by && msr.whose == Some(Whose::Host))
                || report
                    .clocks
                    .iter()
                    .any(|clock| clock.name == leak.by && clock.whose == Some(Whose::Host))
        });
        if !shown || leak.why.is_empty() {
            return Err(format!("{leak:?}").into());
        }
    }
    let counted = report.leaks.iter().map(|leak| leak.contexts.len()).sum::<usize>();
    if counted >= report.host_cells().min(1) { Ok(()) } else { Err("a cell is no leak".into()) }
}

fn costs() -> Result<(), Failed> {
    let report = report()?;
    let of = |name: &str| report.costs.iter().find(|cost| cost.name == name);
    let (Some(nop), Some(out), Some(mmio)) =
        (of("nop"), of("out"), of("read of an address without memory"))
    else {
        return Err(format!("{:?}", report.costs).into());
    };
    let right =
        out.ran == Ran::TrappedUser && mmio.ran == Ran::TrappedUser && out.cycles > nop.cycles;
    if right { Ok(()) } else { Err(format!("{nop:?} {out:?} {mmio:?}").into()) }
}

fn text_and_page() -> Result<(), Failed> {
    let report = report()?;
    let page = &audit().page;
    let complete = page.starts_with("<!doctype html>") && page.ends_with("</html>\n");
    let alone = !page.contains("src=") && !page.contains("href=");
    let named = INSTRUCTIONS.iter().all(|row| page.contains(&format!(">{}", row.name)));
    if !(complete && alone && named && page.contains("<svg") && page.contains(&report.host.backend))
    {
        return Err(format!("the page: {complete} {alone} {named}").into());
    }
    for leak in &report.leaks {
        if !page.contains(&format!("<td>{}</td>", leak.by)) {
            return Err(format!("the page does not name {}", leak.by).into());
        }
    }
    let mut poor = report.clone();
    let closed = poor.contexts.iter_mut().find(|it| it.name == "long/3").ok_or("no long/3")?;
    (closed.entered, closed.emulated, poor.host.counters) = (Entered::No, false, false);
    poor.host.exit_reasons_untold = Some("no <tracefs>".to_owned());
    let page = ringfence::audit::page(&poor);
    for words in ["cannot be entered", "KVM has no counters", "not told: no &lt;tracefs&gt;."] {
        if !page.contains(words) {
            return Err(format!("the page does not say {words}").into());
        }
    }
    Ok(())
}

/// A file that goes with its value.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str, text: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("ringfence-{}-{name}", std::process::id()));
        std::fs::write(&path, text).expect("cannot write");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("no UTF-8")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn compare_same() -> Result<(), Failed> {
    let file = Scratch::new("same.json", &audit().output.stdout);
    let output = run(&["audit", "--compare", file.path(), file.path()]);
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && said == "The two audits found the same.\n" {
        return Ok(());
    }
    Err(format!("{output:?}").into())
}

fn compare_other() -> Result<(), Failed> {
    let mut other = report()?.clone();
    let name = "cpuid";
    other.host.backend = "kvm_\u{1b}[2Jother".to_owned();
    other.leaks.clear();
    let row = other.instructions.iter_mut().find(|row| row.name == name).ok_or("no cpuid")?;
    let cell = row.cells.iter_mut().find(|cell| cell.context == "long/3").ok_or("no cell")?;
    (cell.ran, cell.seen, cell.as_manual) = (Ran::CouldNotRun, None, false);
    let (first, second) = (
        Scratch::new("first.json", &audit().output.stdout),
        Scratch::new("second.json", serde_json::to_string(&other)?.as_bytes()),
    );
    let output = run(&["audit", "--compare", first.path(), second.path(), "--json"]);
    let found: Value = serde_json::from_slice(&output.stdout)?;
    let found = found.as_array().ok_or("no list")?;
    let backend = found.first().is_some_and(|it| it["what"] == "backend");
    let cell =
        found.iter().find(|it| it["what"] == "cpuid in long/3" && it["topic"] == "instructions");
    let said = cell.and_then(|cell| cell["second"].as_str()).unwrap_or("");
    let text = run(&["audit", "--compare", first.path(), second.path()]);
    let text = String::from_utf8_lossy(&text.stdout);
    let head = text.lines().nth(1).is_some_and(|line| line.starts_with("B  no leaks: kvm_\\u{1b}"));
    if backend && said.starts_with("could not run") && head && !text.contains('\u{1b}') {
        return Ok(());
    }
    Err(format!("{backend} {said} {head}\n{text}").into())
}

/// A field of the report: the way to it, and what stands there.
type Field = (Vec<String>, Value);

/// Of each field one that is not null.
fn fields(value: &Value, way: &mut Vec<String>, found: &mut BTreeMap<String, Field>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(list) => {
            list.iter().enumerate().map(|(n, value)| (n.to_string(), value)).collect()
        }
        _ => vec![],
    };
    let kind: Vec<_> = way.iter().filter(|key| key.parse::<usize>().is_err()).cloned().collect();
    if children.is_empty() && !value.is_null() && *value != Value::Array(vec![]) {
        found.entry(kind.join(".")).or_insert_with(|| (way.clone(), value.clone()));
    }
    for (key, value) in children {
        way.push(key);
        fields(value, way, found);
        way.pop();
    }
}

/// What could stand there instead.
fn others(value: &Value) -> Vec<Value> {
    match value {
        Value::Bool(value) => vec![Value::Bool(!value)],
        Value::Number(number) if number.is_u64() => vec![(number.as_u64().unwrap_or(0) + 1).into()],
        Value::Number(number) => vec![(number.as_f64().unwrap_or(0.0) * 50.0 + 1e5).into()],
        Value::String(text) => {
            let names = ["direct", "gate", "own", "host", "no", "by_registers", "innocuous"];
            let names = names.into_iter().filter(|name| name != text).map(str::to_owned);
            std::iter::once(format!("{text}x")).chain(names).map(Value::String).collect()
        }
        _ => vec![],
    }
}

/// What a comparison lists no difference of: what was measured for one cell, what the host's other
/// work moves, and sentences of the program's own.
const UNLISTED: &[&str] = &[
    "contexts.nop_cycles",
    "instructions.cells.cycles",
    "instructions.cells.emulations",
    "instructions.cells.exits",
    "instructions.cells.counters",
    "instructions.cells.manual",
    "msrs.about",
    "msrs.why",
    "costs.reasons",
    "costs.ran",
    "costs.least",
    "costs.spread",
    "costs.cycles",
    "theory.properties.asks",
    "leaks.what",
    // Of the first one, the time-stamp counter: it goes on.
    "msrs.value",
    "msrs.host",
    "format",
];

fn compare_fields() -> Result<(), Failed> {
    let report = report()?;
    let whole = serde_json::to_value(report)?;
    let mut all = BTreeMap::new();
    fields(&whole, &mut vec![], &mut all);
    assert!(all.len() > 60, "{all:?}");
    for (name, (way, old)) in all.iter().filter(|(name, _)| name != &"format") {
        let pointer = format!("/{}", way.join("/"));
        let changed = others(old).into_iter().find_map(|other| {
            let mut changed = whole.clone();
            *changed.pointer_mut(&pointer)? = other;
            Report::parse(&changed.to_string()).ok()
        });
        let changed = changed.ok_or_else(|| format!("{name}: nothing else can stand there"))?;
        let found = ringfence::audit::compare(report, &changed);
        if found.equal || found.differences.is_empty() != UNLISTED.contains(&&name[..]) {
            return Err(format!("{name} ({old}): {:?}", found.differences).into());
        }
    }
    Ok(())
}

fn compare_costs() -> Result<(), Failed> {
    let report = report()?;
    let mut slow = report.clone();
    for cost in &mut slow.costs {
        cost.cycles = cost.cycles * 50.0 + 1e5;
        cost.spread = cost.spread.map(|cycles| cycles * 50.0 + 1e5);
    }
    let cells = slow.instructions.iter_mut().flat_map(|row| &mut row.cells);
    for cycles in cells.filter_map(|cell| cell.cycles.as_mut()) {
        *cycles = *cycles * 50.0 + 1e5;
    }
    let found = ringfence::audit::compare(report, &slow).differences;
    let says = |words: &str| found.iter().any(|it| it.what.contains(words));
    let mut fewer = report.clone();
    let gone = fewer.costs.pop().ok_or("no costs")?;
    let told = ringfence::audit::compare(&fewer, report).differences;
    if !told.iter().any(|it| it.what.contains(&gone.name) && it.first == "none") {
        return Err(format!("{gone:?}: {told:?}").into());
    }
    // An instruction's difference that is its group's too stands in one line with that.
    if found.iter().all(|it| it.topic == "costs") && says("hlt") && says("what ") {
        return Ok(());
    }
    Err(format!("{found:?}").into())
}

/// A second audit of the same host, while it does other work, differs in nothing.
fn compare_again() -> Result<(), Failed> {
    let again = run(&["audit", "--json"]);
    let again = Report::parse(&String::from_utf8_lossy(&again.stdout))?;
    let found = ringfence::audit::compare(report()?, &again);
    // A rig's processor is a program that shares a busy one: its times spread without bounds, and
    // QEMU's counts the PAUSEs that it lets pass from one run to the next.
    let is_rig = std::env::var_os("RINGFENCE_RIG").is_some();
    let by_rig = |it: &Difference| is_rig && (it.topic == "costs" || it.what.starts_with("pause "));
    if found.differences.iter().all(by_rig) { Ok(()) } else { Err(format!("{found:#?}").into()) }
}

/// A masked feature that shows is a leak wherever it does, and whoever shows it.
fn masks() -> Result<(), Failed> {
    let report = report()?;
    let shown = report.cpuid.masked.iter().flat_map(|bit| &bit.shown_in);
    for context in shown {
        let leak = |leak: &&Leak| leak.by == "cpuid" && leak.contexts.contains(context);
        if !report.leaks.iter().any(|it| leak(&it)) {
            return Err(format!("features show in {context}, which is no leak").into());
        }
    }
    // A bit that was masked and shows is the host's: nobody else has it.
    for leaf in &report.cpuid.wrong {
        if (leaf.whose == Whose::Host) != (leaf.host_bits > 0) || leaf.host_bits > leaf.bits {
            return Err(format!("{leaf:?}").into());
        }
    }
    Ok(())
}

/// What is said of a feature is what CPUID shows in that mode and ring.
fn features_as_shown() -> Result<(), Failed> {
    let report = report()?;
    // XSAVE is bit 26 of ECX, which stands above EDX.
    for context in CONTEXTS {
        let Some(seen) = report.cell("cpuid", context.name).and_then(|cell| cell.seen.as_ref())
        else {
            continue;
        };
        let shown = u64::from_str_radix(seen.value.trim_start_matches("0x"), 16)?;
        let cell = report.cell("xgetbv", context.name).ok_or("no XGETBV")?;
        let denied = cell.words.as_ref().is_some_and(|words| words.contains("CPUID has no"));
        if denied == (shown >> (32 + 26) & 1 != 0) {
            return Err(format!("{}: {} and {:?}", context.name, seen.value, cell.words).into());
        }
    }
    Ok(())
}

fn constants() -> Result<(), Failed> {
    let report = report()?;
    for cell in report.instructions.iter().flat_map(|row| &row.cells) {
        let Some(seen) = &cell.seen else { continue };
        let is_hosts = Some(&seen.value) == seen.host.as_ref();
        let wrong = match seen.whose {
            Whose::Constant => is_hosts,
            Whose::Zero => !is_hosts || seen.value != "0x0",
            _ => false,
        };
        if wrong {
            return Err(format!("{cell:?}").into());
        }
    }
    let wrong = report.msrs.iter().find(|msr| match msr.whose {
        Some(Whose::Constant) => msr.host.is_none() || msr.host == msr.value,
        _ => false,
    });
    wrong.map_or(Ok(()), |msr| Err(format!("{msr:?}").into()))
}

/// On hardware all that is untrapped acts on the guest's own state; kvm_pvm's CS is the host's.
fn theory() -> Result<(), Failed> {
    let (report, page) = (report()?, &audit().page);
    let theory = &report.theory;
    let astray = &theory.untrapped_with_hardware;
    let right = match report.host.backend.as_str() {
        "kvm_pvm" => astray.iter().any(|name| name == "mov r, cs"),
        _ => astray.is_empty() && theory.with_hardware().contains("it holds: all"),
    };
    let own = theory.own_seen > 5 && theory.own_seen <= theory.untrapped.len() - astray.len();
    let told = page.contains("unprivileged, behaviour-sensitive") && page.contains("hardware");
    if right && own && told { Ok(()) } else { Err(format!("{theory:?} {told}").into()) }
}

fn msrs() -> Result<(), Failed> {
    let report = report()?;
    let foreign = report.msrs.iter().filter(|msr| msr.foreign && msr.value.is_some());
    let tried = foreign.clone().all(|msr| msr.writable.is_some()) && foreign.count() > 2;
    let said = audit().page.contains("modprobe msr") != report.unknown_msrs().is_empty();
    let counted = audit().page.contains(&format!(" {} MSRs", report.unknown_msrs().len()));
    let counted = counted || report.unknown_msrs().is_empty();
    if tried && said && counted { Ok(()) } else { Err(format!("{tried} {said} {counted}").into()) }
}

fn clocks() -> Result<(), Failed> {
    let report = report()?;
    let of = |name: &str| report.clocks.iter().find(|clock| clock.name.starts_with(name));
    let (agree, page) = (of("do rings"), of("kvmclock"));
    let right = agree.is_some_and(|it| it.found.starts_with("they do: one offset"))
        && page.is_some_and(|it| it.whose == Some(Whose::Own) && it.found.contains(" MHz"));
    if right { Ok(()) } else { Err(format!("{:?}", report.clocks).into()) }
}

fn explain_why() -> Result<(), Failed> {
    let umip = std::fs::read_to_string("/proc/cpuinfo")?.contains(" umip");
    let cases: &[_] = match report()?.host.backend.as_str() {
        "kvm_pvm" if umip => &[("str", "UMIP on"), ("lar", "emulator does not know it")],
        "kvm_pvm" => &[("lar", "emulator does not know it")],
        _ => &[("str", "hardware keeps a copy")],
    };
    for (name, words) in cases {
        let output = run(&["audit", "--explain", name]);
        let said = String::from_utf8_lossy(&output.stdout);
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        if !said.contains(words) {
            return Err(format!("{name}: no {words:?}\n{said}").into());
        }
    }
    Ok(())
}

fn explain() -> Result<(), Failed> {
    let output = run(&["audit", "--explain", "SMSW"]);
    let said = String::from_utf8_lossy(&output.stdout);
    let wanted = [
        "smsw: Stores the machine status word",
        "behaviour-sensitive",
        "long/3",
        "because: ",
        "real",
    ];
    let missing = wanted.iter().find(|text| !said.contains(**text));
    if let (Some(0), None) = (output.status.code(), missing) {
        return Ok(());
    }
    Err(format!("{missing:?} {output:?}").into())
}

fn bad_input() -> Result<(), Failed> {
    let not_json = Scratch::new("bad.json", b"{");
    let no_report = Scratch::new("none.json", b"{\"format\": 7}");
    let wide = Scratch::new("wide.json", b"\xff\xfe{\0}\0");
    let text = String::from_utf8_lossy(&audit().output.stdout).into_owned();
    let marked = Scratch::new("marked.json", format!("\u{feff}{text}").as_bytes());
    let more = Scratch::new("more.json", text.replacen('{', "{\"more\": 1,", 1).as_bytes());
    let empty = Report { instructions: vec![], ..report()?.clone() };
    let empty = Scratch::new("empty.json", serde_json::to_string(&empty)?.as_bytes());
    let hostile = text.replacen('{', "{\"\\u001b[2J\": 1,", 1);
    let hostile = Scratch::new("hostile.json", hostile.as_bytes());
    let cases: [(&[&str], i32); 12] = [
        (&["audit", "--compare", hostile.path(), marked.path()], 65),
        (&["audit", "--compare", wide.path(), marked.path()], 65),
        (&["audit", "--compare", marked.path(), more.path()], 65),
        (&["audit", "--compare", marked.path(), empty.path()], 65),
        (&["audit", "--json", "--html", "-"], 64),
        (&["audit", "--html", "/nonexistent/page.html", "--compare", "a", "b"], 64),
        (&["audit", "--explain", "frobnicate"], 64),
        (&["audit", "--compare", "/nonexistent", "/nonexistent"], 66),
        (&["audit", "--compare", not_json.path(), not_json.path()], 65),
        (&["audit", "--compare", no_report.path(), no_report.path()], 65),
        (&["audit", "--html", "/nonexistent/page.html", "--explain", "smsw"], 64),
        (&["audit", "--compare", not_json.path()], 64),
    ];
    for (args, code) in cases {
        let output = run(args);
        let told = String::from_utf8_lossy(&output.stderr);
        let wrong = told.is_empty() || told.contains("panicked") || told.contains('\u{1b}');
        if output.status.code() != Some(code) || wrong {
            return Err(format!("{args:?}: {output:?}").into());
        }
    }
    let output = run(&["audit", "--compare", marked.path(), marked.path()]);
    if output.status.success() { Ok(()) } else { Err(format!("{output:?}").into()) }
}

fn no_kvm() -> Result<(), Failed> {
    for args in [&["audit", "--kvm", "/nonexistent"][..], &["audit", "--kvm", "/dev/null"]] {
        let output = run(args);
        let lines = String::from_utf8_lossy(&output.stderr).lines().count();
        if output.status.code() != Some(77) || lines != 1 {
            return Err(format!("{args:?}: {output:?}").into());
        }
    }
    let output = run(&["audit", "--explain", "cpuid", "--kvm", "/nonexistent"]);
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(77) && said.starts_with("cpuid: ") {
        return Ok(());
    }
    Err(format!("{output:?}").into())
}
