//! The module order: which top-level module of `src/` may import which, as one table.
//!
//! Inside one crate nothing keeps modules out of an import cycle but this test. It reads
//! paths and nothing else: comments and strings do not count, `#[cfg(test)]` does.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every module, and what it may import beside [`EVERYONE_MAY`]. A row names rows above it
/// only, so the table itself has no cycle. The pair that matters most: devices and kvm never
/// see each other, so every device is tested without /dev/kvm; `machine` joins them.
const TABLE: &[(&str, &[&str])] = &[
    // 0: data and traits.
    ("log", &[]),
    ("verdict", &[]),
    ("state", &[]),
    ("mem", &["state"]),
    ("irq", &["state"]),
    ("x86", &["mem"]),
    ("guests", &[]),
    // 1
    ("bus", &["state"]),
    ("boot", &["mem", "x86"]),
    // 2
    ("config", &["mem", "irq", "x86", "boot"]),
    ("devices", &["state", "mem", "irq", "bus"]),
    ("kvm", &["state", "mem", "irq", "x86"]),
    // 3
    ("vcpu", &["bus", "kvm"]),
    ("inspect", &["mem", "x86", "kvm", "vcpu"]),
    // 4
    (
        "machine",
        &[
            "state", "mem", "irq", "x86", "guests", "bus", "boot", "config", "devices", "kvm",
            "vcpu", "inspect",
        ],
    ),
    // 5
    ("audit", &["mem", "irq", "x86", "kvm", "vcpu", "inspect"]),
    ("control", &["config", "machine"]),
    ("runner", &["irq", "config", "machine"]),
    ("sandbox", &["config"]),
    // 6: `cli` and `main` put everything together.
    ("cli", ALL),
    ("main", ALL),
];

/// For a row that may import every row above it.
const ALL: &[&str] = &["*"];

/// What every row below them may import.
const EVERYONE_MAY: &[&str] = &["log", "verdict"];

/// Words that only some places may use: a file, or a folder ending in `/`; and why.
const FENCES: &[(&str, &[&str], &str)] = &[
    ("kvm_ioctls", &["kvm/"], "ask `kvm` for it"),
    ("kvm_bindings", &["kvm/"], "give it a type of ours in `kvm`"),
    ("clap", &["cli/"], "put it into `cli`, and the result into `config`"),
    (
        "unsafe",
        &[
            "audit/native.rs",
            "cli/terminal.rs",
            "kvm/dirty.rs",
            "kvm/exit.rs",
            "kvm/hyperv.rs",
            "kvm/kept.rs",
            "kvm/plain.rs",
            "kvm/stats.rs",
            "kvm/vcpu.rs",
            "kvm/vcpu/save.rs",
            "kvm/vm.rs",
            "machine/poll.rs",
            "machine/signals.rs",
            "mem/mod.rs",
            "mem/touched.rs",
            "vcpu/control.rs",
            "vcpu/kick.rs",
            "vcpu/limited.rs",
            "vcpu/thread.rs",
        ],
        "do without, or give it a SAFETY comment and the file a place in this list",
    ),
];

#[test]
fn the_table_has_no_cycle() {
    for (position, (module, imports)) in TABLE.iter().enumerate() {
        for import in imports.iter().filter(|import| **import != "*") {
            let above = TABLE[..position].iter().any(|(name, _)| name == import);
            assert!(above, "{module} may import {import}, whose row is not above its own");
        }
    }
}

#[test]
fn modules_keep_their_order() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut findings = vec![];
    let (mut files, mut modules) = (0, BTreeSet::new());
    for file in rust_files(&src) {
        let name = file.strip_prefix(&src).unwrap().to_str().unwrap();
        let source = fs::read_to_string(&file).unwrap();
        findings.extend(check(name, &source));
        modules.insert(module_of(name).to_owned());
        files += 1;
    }
    // Were the walk or the names wrong, nothing would be found.
    assert!(files > 20 && modules.contains("devices") && modules.contains("bus"), "{modules:?}");
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn places_with_unsafe_code_still_have_some() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (_, places, _) = FENCES.iter().find(|(word, ..)| *word == "unsafe").unwrap();
    for place in *places {
        let source = fs::read_to_string(src.join(place)).unwrap_or_default();
        let used = tokens(&source).iter().any(|token| token.text == "unsafe");
        assert!(used, "src/{place} has no unsafe code: strike it from the list in this file");
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The top-level module that a file under `src/` belongs to.
fn module_of(file: &str) -> &str {
    let first = file.split('/').next().unwrap_or(file);
    first.strip_suffix(".rs").unwrap_or(first)
}

/// How many modules deep a file is: 1 for `bus.rs` and `boot/mod.rs`, 2 for `boot/elf.rs`.
fn depth_of(file: &str) -> usize {
    match file {
        "lib.rs" | "main.rs" => 0,
        _ => file.split('/').count() - usize::from(file.ends_with("/mod.rs")),
    }
}

/// What is wrong with a file under `src/`.
fn check(file: &str, source: &str) -> Vec<String> {
    let tokens = tokens(source);
    let at = |line: usize, text: String| format!("src/{file}:{line}: {text}");
    let mut findings = vec![];
    for (word, places, remedy) in FENCES {
        let allowed = places.iter().any(|place| match place.strip_suffix('/') {
            Some(folder) => module_of(file) == folder,
            None => file == *place,
        });
        for token in tokens.iter().filter(|token| !allowed && token.text == *word) {
            let places = places.join(", ");
            findings.push(at(token.line, format!("`{word}` belongs to {places}: {remedy}")));
        }
    }
    let module = module_of(file);
    if module == "lib" {
        return findings;
    }
    let Some(row) = TABLE.iter().position(|(name, _)| *name == module) else {
        let text = format!("module `{module}` has no row in the table of tests/layering.rs");
        findings.push(at(1, text));
        return findings;
    };
    for (import, line) in imports(&tokens, depth_of(file), module == "main") {
        if let Some(text) = objection(row, &import) {
            findings.push(at(line, text));
        }
    }
    findings
}

/// What there is to say against an import by the module of `row`.
fn objection(row: usize, import: &str) -> Option<String> {
    let (module, allowed) = TABLE[row];
    let Some(imported) = TABLE.iter().position(|(name, _)| *name == import) else {
        return Some(format!(
            "`{import}` is no row of the table: write the path from its top-level module (crate::machine::Machine, not crate::Machine), without `*`, `as` or a nested `super`"
        ));
    };
    let above = imported < row;
    let named = allowed == ALL || allowed.contains(&import) || EVERYONE_MAY.contains(&import);
    if imported == row || above && named {
        return None;
    }
    let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
    let all_may = EVERYONE_MAY.join(", ");
    Some(format!(
        "`{module}` must not import `{import}` (it may import: {allowed}; and all may import {all_may}): pass what is needed as a parameter or a trait, or move it to a lower layer"
    ))
}

struct Token<'a> {
    text: &'a str,
    line: usize,
}

/// The first names after the crate's root in every path of a file, and their lines.
fn imports(tokens: &[Token], depth: usize, is_binary: bool) -> Vec<(String, usize)> {
    let text = |i: usize| tokens.get(i).map_or("", |token: &Token| token.text);
    let mut found = vec![];
    // One entry an open brace: does a module's body begin there?
    let mut braces: Vec<bool> = vec![];
    let mut in_use = false;
    for i in 0..tokens.len() {
        let before = if i == 0 { "" } else { text(i - 1) };
        match text(i) {
            "{" => braces.push(i > 1 && text(i - 2) == "mod"),
            "}" => _ = braces.pop(),
            "use" => in_use = true,
            ";" => in_use = false,
            "super" if in_use && matches!(before, "{" | ",") => {
                found.push(("super".to_owned(), tokens[i].line));
            }
            "crate" if before != "::" && !is_binary => names_after(tokens, i + 1, &mut found),
            "ringfence" if before != "::" && is_binary => names_after(tokens, i + 1, &mut found),
            "super" if before != "::" || (i > 1 && text(i - 2) == "self") => {
                let supers = (0..).take_while(|n| text(i + 2 * n) == "super").count();
                let inside = depth + braces.iter().filter(|is_module| **is_module).count();
                if supers == inside {
                    names_after(tokens, i + 2 * supers - 1, &mut found);
                }
            }
            _ => {}
        }
    }
    found
}

/// `tokens[start]` follows the root: `::name`, `::{name, name::{..}}`, or no path.
fn names_after(tokens: &[Token], start: usize, found: &mut Vec<(String, usize)>) {
    let text = |i: usize| tokens.get(i).map_or("", |token: &Token| token.text);
    if text(start) == "as" {
        found.push(("as".to_owned(), tokens[start].line));
    }
    if text(start) != "::" {
        return;
    }
    if text(start + 1) != "{" {
        found.extend(tokens.get(start + 1).map(|token| (token.text.to_owned(), token.line)));
        return;
    }
    let mut open = 0;
    for (i, token) in tokens.iter().enumerate().skip(start + 1) {
        let is_first = open == 1 && matches!(text(i - 1), "{" | ",");
        match token.text {
            "{" => open += 1,
            "}" if open == 1 => return,
            "}" => open -= 1,
            name if is_first => found.push((name.to_owned(), token.line)),
            _ => {}
        }
    }
}

/// A source as words, `::`, and single characters; no comment, string or character.
fn tokens(source: &str) -> Vec<Token<'_>> {
    let (mut tokens, mut rest, mut line) = (vec![], source, 1);
    while let Some(first) = rest.chars().next() {
        let skipped = skipped(rest);
        let len = if skipped > 0 {
            skipped
        } else {
            let len = match first {
                _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                ':' if rest.starts_with("::") => 2,
                _ => first.len_utf8(),
            };
            tokens.push(Token { text: &rest[..len], line });
            len
        };
        line += rest[..len].matches('\n').count();
        rest = &rest[len..];
    }
    tokens
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// How many bytes of what begins here are no code: a space, a comment, a literal.
fn skipped(rest: &str) -> usize {
    let first = rest.chars().next().unwrap_or(' ');
    let prefix = ["br", "cr", "r", "b", "c"].into_iter().find(|p| {
        let after = rest.strip_prefix(p).map(|after| after.trim_start_matches('#'));
        after.is_some_and(|after| after.starts_with('"'))
    });
    if let Some(prefix) = prefix.filter(|prefix| prefix.ends_with('r')) {
        let hashes = rest[prefix.len()..].find('"').unwrap_or(0);
        let end = format!("\"{}", "#".repeat(hashes));
        let body = prefix.len() + hashes + 1;
        return rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len());
    }
    match first {
        _ if first.is_whitespace() => first.len_utf8(),
        _ if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
        _ if rest.starts_with("/*") => block_comment(rest),
        '"' => quoted(rest, '"'),
        _ if prefix.is_some_and(|prefix| rest[prefix.len()..].starts_with('"')) => {
            1 + quoted(&rest[1..], '"')
        }
        '\'' => {
            // A character closes after one, or begins with a backslash; a lifetime does not.
            let mut next = rest[1..].chars();
            let is_char = matches!((next.next(), next.next()), (Some('\\'), _) | (_, Some('\'')));
            if is_char { quoted(rest, '\'') } else { 1 }
        }
        _ => 0,
    }
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let (step, change) = match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (2, 1),
            [b'*', b'/', ..] => (2, -1),
            _ => (1, 0),
        };
        at += step;
        depth += change;
        if depth == 0 {
            break;
        }
    }
    at
}

mod the_checker_can_fail {
    use super::check;

    /// The lines that are found fault with.
    fn lines(file: &str, source: &str) -> Vec<usize> {
        let findings = check(file, source);
        let prefix = format!("src/{file}:");
        let line = |finding: &String| {
            let (line, _) = finding.strip_prefix(&prefix).unwrap().split_once(':').unwrap();
            line.parse().unwrap()
        };
        findings.iter().map(line).collect()
    }

    #[test]
    fn on_every_form_of_path() {
        for source in [
            "use crate::kvm::Vm;",
            "use crate::{bus, kvm::Vm};",
            "use crate::{bus::{Bus, Device}, irq, vcpu};",
            "use {crate::bus::Bus, crate::kvm::Vm};",
            "pub use crate :: kvm as host;",
            "fn f() { crate::machine::run() }",
            "macro_rules! m { () => { $crate::kvm::f() } }",
            "#[cfg(test)] mod tests { use crate::kvm::Vm; }",
            "use super::super::kvm::Vm;",
            "use self::super::super::kvm::Vm;",
            "mod tests { use super::super::super::kvm::Vm; }",
            "use super::{super::kvm::Vm};",
            "use crate::*;",
            "use crate::{self as root};",
            "use crate as root;",
            "use crate::Machine;",
            "const S: char = '\"'; use crate::kvm::Vm; const T: char = '\"';",
            "fn f<'a>(s: &'a str) -> crate::kvm::Vm<'a>;",
            "const S: &str = r#\" \" \"#; use crate::kvm::Vm;",
            "/* /* */ */ use crate::kvm::Vm;",
        ] {
            let source = format!("// first\n{source}");
            assert_eq!(lines("devices/serial.rs", &source), [2], "{source}");
        }
        assert_eq!(lines("devices/mod.rs", "\n\nuse super::kvm::Vm;"), [3]);
    }

    #[test]
    fn but_not_on_what_is_allowed_or_is_no_path() {
        for source in [
            "use crate::bus::Bus; use crate::{irq, mem::layout, verdict::{StopLine, Verdict}};",
            "use crate::devices::Console; use super::{Console, testing::Stops};",
            "// use crate::kvm::Vm;\n/// [`crate::kvm`]\n/* crate::kvm /* crate::vcpu */ crate::kvm */",
            "const S: &str = \"crate::kvm \\\" unsafe\"; const R: &str = r#\"crate::kvm \" clap\"#;",
            "const B: &[u8] = b\"crate::kvm\"; const C: u8 = b'\\''; const D: &str = \"unsafe\";",
            "pub(crate) fn f() {} mod tests { use super::super::kvm::Key; }",
            "fn f(unsafe_code: u8) { g(1, super::kvm()) }",
        ] {
            assert_eq!(check("devices/serial.rs", source), [""; 0], "{source}");
        }
    }

    #[test]
    fn on_each_rule_of_the_table() {
        for (file, source, faults) in [
            ("kvm/vm.rs", "use crate::devices::Serial;", 1),
            ("kvm/vm.rs", "use crate::bus::Bus;", 1),
            ("verdict.rs", "use crate::mem::Range;", 1),
            ("verdict.rs", "use crate::log::info;", 0),
            ("log.rs", "use crate::verdict::Verdict;", 1),
            ("sandbox.rs", "use crate::machine::Machine;", 1),
            ("machine/platform.rs", "use crate::{devices, kvm, vcpu, config};", 0),
            ("machine/mod.rs", "use crate::cli::Args;", 1),
            ("cli/mod.rs", "use crate::{machine, kvm, config};", 0),
            ("main.rs", "use ringfence::{cli, machine::Machine};", 0),
            ("main.rs", "use ringfence::Machine;", 1),
            ("lib.rs", "pub use crate::machine::Machine;", 0),
            ("newcomer/mod.rs", "", 1),
        ] {
            assert_eq!(lines(file, source).len(), faults, "{file}: {source}");
        }
    }

    #[test]
    fn on_each_fence() {
        for (file, source, faults) in [
            ("machine/mod.rs", "use kvm_ioctls::Kvm;", 1),
            ("vcpu/run.rs", "fn f(r: &kvm_bindings::kvm_regs) {}", 1),
            ("kvm/vm.rs", "use kvm_ioctls::VmFd; use kvm_bindings::*;", 0),
            ("config.rs", "#[derive(clap::Args)] struct A;", 1),
            ("cli/args.rs", "use clap::Parser;", 0),
            ("devices/serial.rs", "unsafe { f() }", 1),
            ("lib.rs", "unsafe fn f() {}", 1),
            ("mem/mod.rs", "unsafe { f() }", 0),
        ] {
            assert_eq!(lines(file, source).len(), faults, "{file}: {source}");
        }
    }
}
