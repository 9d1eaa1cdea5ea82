//! Every death of tests/deaths.table through the binary: the first line of its autopsy, the
//! report's data, and the one line that is left without. One test a row.
//!
//! `RINGFENCE_TEST_SET=small`, for the slow VT-x rig, makes no difference: each is short.

mod images;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Output, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};
use ringfence::guests;
use ringfence::inspect::Symbols;
use ringfence::kvm::Backend;
use serde_json::Value;

const TABLE: &str = include_str!("deaths.table");

struct Row {
    name: &'static str,
    /// The first line, with `*` for any text.
    line: &'static str,
}

/// The rows for a backend: `NAME@BACKEND` goes before `NAME`.
fn rows(backend: &str) -> Vec<Row> {
    let lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let all: Vec<_> = lines
        .map(|line| {
            let (name, line) = line.split_once('|').expect("two columns");
            (name.trim().split_once('@').unwrap_or((name.trim(), "")), line.trim())
        })
        .collect();
    let general = all.iter().filter(|((_, on), _)| on.is_empty());
    let own = |name| all.iter().find(|(row, _)| *row == (name, backend)).map(|(_, line)| *line);
    general.map(|&((name, _), line)| Row { name, line: own(name).unwrap_or(line) }).collect()
}

fn main() -> ExitCode {
    let backend = Backend::detect().name();
    println!("backend {backend}");
    let mut trials = vec![
        Trial::test("the table has every death, of guests that there are", || {
            let rows = rows("");
            let listed = guests::GUESTS.iter().filter(|guest| guest.name.starts_with("death-"));
            assert!(rows.len() >= 15 && listed.count() <= rows.len());
            assert!(rows.iter().all(|row| guests::find(row.name).is_some()));
            Ok(())
        }),
        Trial::test("patterns match what they should", || {
            assert!(matches("a*c*", "abc") && matches("a*c", "ac") && matches("a", "a"));
            assert!(!matches("a*c", "ab") && !matches("a", "ab") && !matches("b*", "ab"));
            Ok(())
        }),
    ];
    for row in rows(backend) {
        let skip = guests::find(row.name).and_then(|guest| guest.skip_on(backend));
        if let Some(reason) = skip {
            println!("not run on {backend}: {}: {reason}", row.name);
        }
        let trial = Trial::test(row.name, move || check(&row));
        trials.push(trial.with_ignored_flag(skip.is_some()));
    }
    let gdb = Command::new("gdb").arg("--version").output().is_ok();
    if !gdb {
        println!("not run: the core in gdb: gdb is not installed");
    }
    trials.push(Trial::test("the core opens in gdb", core).with_ignored_flag(!gdb));
    trials
        .push(Trial::test("a core is of its image's class", core_classes).with_ignored_flag(!gdb));
    trials.push(Trial::test("symbols of a file at an offset", symbols));
    trials.push(Trial::test("a guest that did not die leaves no core", no_core));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or("")) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    command.arg("run").args(args).stdin(Stdio::null());
    command.output().expect("cannot run ringfence")
}

fn check(row: &Row) -> Result<(), Failed> {
    let image = format!("@{}", row.name);
    let guest = guests::find(row.name).ok_or("no such guest")?;
    let directory = Scratch::new(row.name);
    let report = directory.path.join("report.json");
    let limit: &[&str] =
        if guest.args.contains(&"--timeout") { &[] } else { &["--timeout", "20s"] };
    let mut args = vec![image.as_str(), "--autopsy", "full", "--report"];
    args.push(report.to_str().ok_or("no UTF-8")?);
    args.extend(limit);
    let output = run(&args);
    let told = String::from_utf8_lossy(&output.stderr);
    let first = told.lines().next().unwrap_or("").strip_prefix("ringfence: ").unwrap_or("");
    if !matches(row.line, first) {
        return Err(format!("wanted {}\ngot    {first}\n{told}", row.line).into());
    }
    if output.status.code() != Some(guest.verdict.into()) {
        return Err(format!("{} instead of {}\n{told}", output.status, guest.verdict).into());
    }
    check_report(&std::fs::read_to_string(&report)?, first)?;
    let mut args = vec![image.as_str(), "--autopsy", "off"];
    args.extend(limit);
    let lines = String::from_utf8_lossy(&run(&args).stderr).lines().count();
    if lines == 1 { Ok(()) } else { Err(format!("{lines} lines without an autopsy").into()) }
}

/// gdb shows the place, the registers, linear and physical memory, and the file has holes.
fn core() -> Result<(), Failed> {
    use std::os::unix::fs::MetadataExt;
    let name = "death-fault-in-handler";
    let directory = Scratch::new("core");
    let (core, elf) = (directory.path.join("core"), directory.path.join("kernel.elf"));
    std::fs::write(&elf, guests::find(name).ok_or("no such guest")?.image)?;
    let [core_path, elf_path] = [&core, &elf].map(|path| path.display().to_string());
    run(&["@death-fault-in-handler", "--timeout", "20s", "--autopsy=full", "--core", &core_path]);
    let metadata = std::fs::metadata(&core)?;
    if metadata.len() < 128 << 20 || metadata.blocks() * 512 > 8 << 20 {
        return Err(format!("{} bytes in {} blocks", metadata.len(), metadata.blocks()).into());
    }
    let commands = ["info symbol $rip", "p/x $rax", "x/1bx $rip", "x/1bx 0x100000000000000+$rip"];
    let mut gdb = Command::new("gdb");
    gdb.args(["-q", "-batch", "-nx"]);
    commands.iter().for_each(|command| _ = gdb.args(["-ex", command]));
    let output = gdb.args([&elf_path, &core_path]).env("DEBUGINFOD_URLS", "").output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    // 8b 00: mov eax, [rax].
    let wanted = ["faulting_handler + 10 in section .text", "$1 = 0xffff800000456000"];
    let byte = said.matches("\t0x8b").count();
    if wanted.iter().all(|text| said.contains(text)) && byte == 2 {
        return Ok(());
    }
    Err(format!("{said}\n{}", String::from_utf8_lossy(&output.stderr)).into())
}

/// A core is of its image's class, whatever mode the guest died in, so that gdb takes both. The
/// image: `push ebp; mov ebp, esp; call f; hlt; f: push ebp; mov ebp, esp; ud2`, in 32-bit code.
fn core_classes() -> Result<(), Failed> {
    const CODE: &[u8] = b"\x55\x89\xE5\xE8\x01\0\0\0\xF4\x55\x89\xE5\x0F\x0B";
    let at = images::Segment::load(0x10_0000, 0x10_0000, CODE, 0x1000);
    let elf32 = images::elf32(images::ET_EXEC, 0x10_0000, std::slice::from_ref(&at));
    // PVH enters an ELF64 in protected mode (Xen, public/elfnote.h: PHYS32_ENTRY).
    let note = images::Segment::note("Xen", 18, &0x10_0000_u32.to_le_bytes());
    let elf64 = images::elf64(images::ET_EXEC, 0x10_0000, &[at, note]);
    // 32-bit frames are none to a debugger of 64-bit code.
    for (image, memory, ip, caller) in [
        (&elf32, "128M", "$eip", Some("#1  0x00100008")),
        (&elf32, "5G", "$eip", Some("#1  0x00100008")),
        (&elf64, "128M", "$rip", None),
    ] {
        let directory = Scratch::new("core-class");
        let [elf, core] = ["kernel", "core"].map(|name| directory.path.join(name));
        std::fs::write(&elf, image)?;
        let [elf, core] = [elf, core].map(|path| path.display().to_string());
        let run = run(&[&elf, "--memory", memory, "--autopsy=full", "--core", &core]);
        let mut gdb = Command::new("gdb");
        gdb.args(["-q", "-batch", "-nx", "-ex", &format!("x/i {ip}"), "-ex", "bt"]);
        let output = gdb.args([&elf, &core]).env("DEBUGINFOD_URLS", "").output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let told = String::from_utf8_lossy(&output.stderr);
        let zeroes = if ip == "$eip" { "0x0010000c" } else { "0x000000000010000c" };
        let first = said.contains("=> 0x10000c:\tud2") && said.contains(&format!("#0  {zeroes}"));
        if !first || !caller.is_none_or(|it| said.contains(it)) || told.contains("not compatible") {
            return Err(format!("{ip} {memory}: {run:?}\n{said}\n{told}").into());
        }
    }
    Ok(())
}

fn symbols() -> Result<(), Failed> {
    let image = guests::find("death-null-call").ok_or("no such guest")?.image;
    let mut symbols = Symbols::new();
    assert!(symbols.add(image, 0x1000_0000) && !symbols.add(b"no ELF", 0));
    let mut places = (0x1010_0000..0x1011_0000).filter_map(|at| symbols.at(at));
    let place = places.find(|place| place.function == "call_null").ok_or("no call_null")?;
    assert_eq!(place.offset, 0);
    assert!(place.to_string().starts_with("call_null+0x0 (deaths.S:"), "{place}");
    assert_eq!(symbols.at(0x10_0000), None);
    assert!(!symbols.are_compressed());
    let image = compressed(image).ok_or("no ELF")?;
    let mut symbols = Symbols::new();
    assert!(symbols.add(&image, 0x1000_0000) && symbols.are_compressed());
    assert!(symbols.at(0x1010_0000).is_some_and(|place| place.file.is_none()));
    Ok(())
}

/// An ELF64 whose .debug_info says that it is compressed.
fn compressed(image: &[u8]) -> Option<Vec<u8>> {
    use object::{Object, ObjectSection};
    let index = object::File::parse(image).ok()?.section_by_name(".debug_info")?.index().0;
    let headers = u64::from_le_bytes(image.get(0x28..0x30)?.try_into().ok()?) as usize;
    let mut image = image.to_vec();
    // The second byte of sh_flags; SHF_COMPRESSED is bit 11.
    *image.get_mut(headers + index * 64 + 9)? |= 8;
    Some(image)
}

fn no_core() -> Result<(), Failed> {
    let directory = Scratch::new("no-core");
    let core = directory.path.join("core");
    let output = run(&["@exit-7", "--core", core.to_str().ok_or("no UTF-8")?]);
    if output.status.code() == Some(7) && !core.exists() && output.stderr.is_empty() {
        return Ok(());
    }
    Err(format!("{output:?}").into())
}

/// The report is what its schema says, and holds what the page says.
fn check_report(text: &str, first: &str) -> Result<(), Failed> {
    let report: Value = serde_json::from_str(text)?;
    let schema: Value = serde_json::from_str(ringfence::machine::report::SCHEMA)?;
    let validator = jsonschema::validator_for(&schema)?;
    if let Some(error) = validator.iter_errors(&report).next() {
        return Err(format!("{error} at {}", error.instance_path()).into());
    }
    let autopsy = &report["autopsy"];
    let cpu = &autopsy["cpus"][0];
    let last = cpu["exits"].as_array().and_then(|exits| exits.last());
    if last.is_none_or(|exit| !exit["exit"].is_string() || !exit["rip"].is_u64()) {
        return Err(format!("no exits as data: {}", cpu["exits"]).into());
    }
    if autopsy["summary"] != first || autopsy["cpus"][0]["code"].as_array().is_none() {
        return Err(format!("the report tells another story: {}", autopsy["summary"]).into());
    }
    Ok(())
}

/// A directory that goes with its value.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("ringfence-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("cannot make a directory");
        Self { path }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
