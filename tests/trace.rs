//! Traces, statistics, profiles and strict mode through the binary, on this machine's KVM.
//!
//! All of them are quick enough for RINGFENCE_TEST_SET=small, so they do not look at it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn ringfence(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    command.arg("run").args(args).stdin(Stdio::null());
    if !args.contains(&"--timeout") {
        command.args(["--timeout", "30s"]);
    }
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A directory of one test's own, that goes with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ringfence-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn lines(path: impl AsRef<Path>) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Exits by kind, as the report has them.
fn exits(report: &Value) -> BTreeMap<String, u64> {
    let kinds = report["exits"].as_object().unwrap();
    kinds.iter().map(|(kind, count)| (kind.clone(), number(count))).collect()
}

fn is_valid(report: &Value) {
    let schema: Value = serde_json::from_str(ringfence::machine::report::SCHEMA).unwrap();
    let problems: Vec<String> = jsonschema::validator_for(&schema)
        .unwrap()
        .iter_errors(report)
        .map(|e| format!("{}: {e}", e.instance_path()))
        .collect();
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn every_exit_is_a_json_line_and_what_is_written_is_in_it() {
    let scratch = Scratch::new("trace-json");
    let (trace, report) = (scratch.path("t.jsonl"), scratch.path("r.json"));
    let output = ringfence(&["@hello-long", "--trace", &trace, "--report", &report]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines = lines(&trace);
    let mut kinds = BTreeMap::new();
    let mut written = Vec::new();
    for (expected, line) in lines.iter().enumerate() {
        assert_eq!(number(&line["number"]), expected as u64);
        assert_eq!(line.get("time_ns"), None);
        *kinds.entry(line["exit"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        if line["exit"] == "pio_out" && line["address"] == 0x3F8 {
            assert!(number(&line["rip"]) >= 0x10_0000);
            written.push(number(&line["value"]) as u8);
        }
    }
    let report = json(&report);
    is_valid(&report);
    assert_eq!(kinds, exits(&report));
    assert_eq!(text(&written), text(&output.stdout));
    assert!(report.get("stats").is_none());
    let last = lines.iter().rfind(|line| line["exit"] == "pio_out").unwrap();
    assert_eq!((number(&last["address"]), number(&last["value"])), (0xF4, 0));
}

#[test]
fn a_filter_leaves_the_rest_out_and_reads_have_their_answers() {
    let output = ringfence(&[
        "@pio",
        "--serial",
        "null",
        "--trace",
        "-",
        "--trace-filter",
        "pio_out:0xf4,pio_in:0xe9",
        "--trace-time",
    ]);
    let trace = text(&output.stdout);
    assert!(trace.lines().count() >= 3, "{trace}");
    let mut before = 0.0;
    for line in trace.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let time: f64 = words[0].parse().unwrap();
        assert!(time > before, "{line}");
        before = time;
        assert_eq!(words[1], "cpu0");
        assert!(line.contains("pio_out         0xf4 ") || line.contains("pio_in          0xe9 "));
        // The debug console answers with its own address.
        assert!(words[4] == "0xf4" || words[6].ends_with("e9"), "{line}");
    }
    assert!(trace.lines().last().unwrap().contains(" 0xf4                = 0x00000000"), "{trace}");
}

#[test]
fn every_vcpu_is_traced() {
    let scratch = Scratch::new("trace-smp");
    let (trace, report) = (scratch.path("trace"), scratch.path("r.json"));
    let args = ["@smp", "--trace", &trace, "--trace-format", "json", "--report", &report];
    let output = ringfence(&args);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines = lines(&trace);
    for vcpu in 0..2 {
        let own = lines.iter().filter(|line| line["vcpu"] == vcpu);
        let numbers: Vec<_> = own.map(|line| number(&line["number"])).collect();
        assert!(!numbers.is_empty());
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
    }
    assert_eq!(lines.len() as u64, exits(&json(&report)).values().sum::<u64>());
}

#[test]
fn statistics_add_up_in_the_report_and_in_the_table() {
    let scratch = Scratch::new("stats");
    let report = scratch.path("r.json");
    let output = ringfence(&["@profile", "--stats", "--report", &report]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report = json(&report);
    is_valid(&report);
    let stats = &report["stats"];
    let sum = |part: &str| -> u64 {
        stats[part].as_array().unwrap().iter().map(|line| number(&line["count"])).sum()
    };
    let counted = exits(&report);
    assert_eq!(number(&stats["exits"]), counted.values().sum::<u64>());
    assert_eq!(sum("kinds"), number(&stats["exits"]));
    let interrupted = counted.get("interrupted").copied().unwrap_or(0);
    assert_eq!(sum("functions") + interrupted, number(&stats["exits"]));
    assert!(stats["user_seconds"].as_f64().unwrap() > 0.0);
    let places = stats["places"].as_array().unwrap();
    let com1 = places.iter().find(|line| line["address"] == 0x3F8 && line["exit"] == "pio_out");
    let com1 = com1.expect("no line for COM1");
    assert_eq!((&com1["device"], number(&com1["count"])), (&Value::from("com1"), 10));
    let function = &stats["functions"][0];
    assert_eq!(function["function"], "put_text", "{stats}");
    let kernel = stats["kernel"]["vcpus"][0].as_array().unwrap();
    let exits = kernel.iter().find(|stat| stat["name"] == "exits").expect("KVM counts exits");
    assert!(number(&exits["values"][0]) > 0);

    let table = text(&output.stderr);
    for words in
        ["exits by kind", "pio_out    0x3f8 com1", "  put_text", "KVM's counters of vCPU 0"]
    {
        assert!(table.contains(words), "{words} is not in\n{table}");
    }
}

#[test]
fn a_profile_shows_who_called_whom() {
    let scratch = Scratch::new("profile");
    let folded = scratch.path("folded");
    let args = ["@profile", "--cmdline", "how=spin", "--timeout", "1s", "--profile", &folded];
    let output = ringfence(&args);
    assert_eq!(output.status.code(), Some(124), "{}", text(&output.stderr));
    let folded = std::fs::read_to_string(&folded).unwrap();
    let (mut all, mut inner) = (0, 0);
    for line in folded.lines() {
        let (stack, count) = line.rsplit_once(' ').expect(line);
        let count: u64 = count.parse().expect(line);
        let frames: Vec<_> = stack.split(';').collect();
        assert!(frames.len() >= 2 && frames[0] == "vcpu0", "{line}");
        all += count;
        if frames.ends_with(&["guest", "outer", "inner"]) {
            inner += count;
        }
    }
    assert!(inner >= 20 && inner * 2 > all, "{folded}");
}

/// The number behind `before` in `text`.
#[test]
fn a_processor_that_does_not_run_is_idle_in_a_profile() {
    let scratch = Scratch::new("idle");
    let profile = scratch.path("p");
    let args = ["@spin", "--cpus", "2", "--irqchip", "full", "--timeout", "2s"];
    let output = ringfence(&[&args[..], &["--profile", &profile]].concat());
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    let folded = std::fs::read_to_string(&profile).unwrap();
    let second: Vec<_> = folded.lines().filter(|line| line.starts_with("vcpu1;")).collect();
    assert!(matches!(second[..], [line] if line.starts_with("vcpu1;[idle] ")), "{folded}");
    assert!(folded.contains("vcpu0;0x"), "{folded}");
}

fn address_after(text: &str, before: &str) -> u64 {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before} in {text}"));
    let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    u64::from_str_radix(&digits, 16).unwrap()
}

#[test]
fn a_broken_rule_is_named_with_its_instruction() {
    for (how, rule, access) in [
        ("io-read", "io", "a read of 2 bytes from port 0x1230"),
        ("io-write", "io", "a write of 0x12345678 (4 bytes) to port 0x1230"),
        ("mmio-read", "mmio", "a read of 1 byte at 0xd0000010"),
        ("mmio-write", "mmio", "a write of 0x00001234 (4 bytes) to 0xd0000014"),
        ("msr-read", "msr", "a read of MSR 0xdead00"),
        ("msr-write", "msr", "a write of 0x5 to MSR 0xdead00"),
        ("text", "text", "a write of 0x0bad (2 bytes) to 0x10"),
        ("text-push", "text", "(8 bytes) to 0x10"),
        ("text-call", "text", "(8 bytes) to 0x10"),
        ("text-sidt", "text", "a write of 10 bytes to 0x10"),
        ("text-fxsave", "text", "a write of 512 bytes to 0x10"),
        ("text-accessed", "text", "a write of a descriptor's accessed bit to 0x10"),
        ("null-sidt", "null", "a write of 10 bytes to 0x8, in page zero"),
        ("null-read", "null", "a read of 8 bytes at 0x8, in page zero"),
        ("null-write", "null", "a write of 0x07 (1 byte) to 0x0, in page zero"),
        ("null-jump", "null", "page zero was jumped to"),
    ] {
        let output = ringfence(&[&format!("@strict-{how}")]);
        let (said, told) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(85), "{how}: {told}");
        assert!(!said.contains("survived"), "{how}: {said}");
        assert!(told.contains(access), "{how}: {told}");
        assert!(told.contains(&format!("(--strict={rule})")), "{how}: {told}");
        let at = address_after(&said, "at=0x");
        assert_eq!(address_after(&told, "violation at 0x"), at, "{how}: {said}{told}");
    }
}

#[test]
fn a_boot_sector_keeps_its_page_zero() {
    let refused = ringfence(&["@hello-real", "--strict"]);
    let told = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(78), "{told}");
    assert!(told.contains("real mode") && told.contains("io,mmio,msr,text"), "{told}");
    let allowed = ringfence(&["@hello-real", "--strict=io,mmio,msr,text"]);
    assert_eq!(allowed.status.code(), Some(0), "{}", text(&allowed.stderr));
}

#[test]
fn mistakes_are_refused_before_the_guest_runs() {
    for (args, code, words) in [
        (&["--strict=loose"][..], 64, "loose"),
        (&["--trace", "-", "--trace-filter", "disk"], 64, "pio_out"),
        (&["--trace-filter", "pio"], 64, "--trace"),
        (&["--trace", "/no/such/directory/t"], 71, "/no/such/directory/t"),
    ] {
        let output = ringfence(&[&["@hello-long"], args].concat());
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
        assert!(told.contains(words) && output.stdout.is_empty(), "{args:?}: {told}");
    }
}
