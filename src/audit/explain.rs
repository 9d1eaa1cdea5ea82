//! One instruction, explained: what it does, why it is sensitive, and what this host did with it.
//! Called by `cli`; text only.

use std::fmt::Write;

use super::One;
use super::instruction::{Instruction, Needs};
use super::report::NO_COUNTERS;
use super::table::INSTRUCTIONS;
use super::theory;

/// Columns of a page.
const WIDTH: usize = 100;

/// The page of an instruction; without `found` it says nothing of this host.
pub fn explain(row: &Instruction, found: Option<&One>) -> String {
    let mut page = String::new();
    let mut say = |head: &str, text: &str| wrap(&mut page, head, text);
    say("", &format!("{}: {}", row.name, row.about));
    say("  bytes", &bytes(row));
    say("  class", &class(row));
    say("  why", &why(row));
    say("  exits", row.exits);
    if let Some(found) = found {
        page.push('\n');
        here(&mut page, found);
    }
    page
}

/// Why a monitor must see it; where that is "as X", X's reason too.
fn why(row: &Instruction) -> String {
    let mut text = row.why.to_owned();
    let mut last = row;
    while let Some(other) = same_as(last) {
        text += &format!(" {}: {}", other.name.to_uppercase(), other.why);
        last = other;
    }
    text
}

/// The instruction that this one's reason names: "As POPF: ...". None points back.
fn same_as(row: &Instruction) -> Option<&'static Instruction> {
    let name = row.why.strip_prefix("As ")?.split(['.', ',', ';', ':']).next()?.to_lowercase();
    let whole = INSTRUCTIONS.iter().find(|other| other.name == name);
    let by_word = || INSTRUCTIONS.iter().find(|other| other.name.split(' ').any(|it| it == name));
    whole.or_else(by_word).filter(|other| other.name != row.name)
}

fn here(page: &mut String, found: &One) {
    let host = &found.host;
    wrap(page, "", &format!("On this host ({}, Linux {}):", host.backend, host.kernel));
    for cell in &found.finding.cells {
        let head = format!("  {}", cell.context);
        wrap(page, &head, &format!("{}.", cell.sentence()));
        let why = theory::why(cell);
        if !why.is_empty() {
            wrap(page, "", &format!("           because: {why}"));
        }
        if let Some(words) = cell.words.as_ref().filter(|words| **words != why) {
            wrap(page, "", &format!("           note: {words}"));
        }
    }
    if let Some(why) = &host.exit_reasons_untold {
        wrap(page, "", &format!("The reasons of exits are not told: {why}."));
    }
    if !host.counters {
        wrap(page, "", NO_COUNTERS);
    }
}

fn bytes(row: &Instruction) -> String {
    let hex = |bytes: &[u8]| {
        let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(" ")
    };
    let [b16, b32, b64] = row.bytes;
    match (b16.is_empty(), b64.is_empty(), b16 == b64 && b32 == b64) {
        (_, _, true) => hex(b64),
        (_, true, _) => format!("{} (not in 64-bit code)", hex(b32)),
        (true, _, _) if b32.is_empty() => format!("{} (only in 64-bit code)", hex(b64)),
        _ => format!("{}; in 64-bit code {}", hex(b32), hex(b64)),
    }
}

fn class(row: &Instruction) -> String {
    let privileged = match (row.is_privileged(), row.needs) {
        (false, _) => "unprivileged (it does not trap by itself in ring 3)",
        (true, Needs::Absent) => {
            "privileged (it traps in ring 3, and in ring 0 too as long as the guest does not have it)"
        }
        (true, Needs::Iopl) => {
            "privileged (it traps outside ring 0, unless the I/O privilege level, or for ports the I/O permission bitmap, lets the ring)"
        }
        (true, _) => "privileged (it traps outside ring 0)",
    };
    let sensitive = match row.sensitive.name() {
        "innocuous" => "innocuous".to_owned(),
        name => format!("{name}-sensitive"),
    };
    let seventeen =
        if row.seventeen { "; one of the seventeen of Robin and Irvine (2000)" } else { "" };
    format!("{privileged}, {sensitive}{seventeen}")
}

/// A paragraph with a hanging indent behind `head`.
fn wrap(page: &mut String, head: &str, text: &str) {
    let indent = if head.is_empty() { text.len() - text.trim_start().len() } else { 11 };
    let mut line = if head.is_empty() { " ".repeat(indent) } else { format!("{head:indent$}") };
    let mut first = true;
    for word in text.split_whitespace() {
        if !first && line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(page, "{}", line.trim_end());
            line = " ".repeat(indent);
            first = true;
        }
        if !first {
            line.push(' ');
        }
        line.push_str(word);
        first = false;
    }
    let _ = writeln!(page, "{}", line.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_makes_a_page_that_fits() {
        for row in INSTRUCTIONS {
            let page = explain(row, None);
            assert!(page.lines().count() >= 5, "{page}");
            assert!(page.lines().all(|line| line.len() <= WIDTH), "{page}");
        }
    }

    #[test]
    fn a_reason_that_is_another_ones_is_told() {
        let rows = INSTRUCTIONS.iter().filter(|row| row.why.starts_with("As "));
        for row in rows.filter(|row| !row.why.starts_with("As MOV ")) {
            let other = same_as(row).unwrap_or_else(|| panic!("{}: {}", row.name, row.why));
            assert!(why(row).contains(other.why), "{}", why(row));
        }
        let row = INSTRUCTIONS.iter().find(|row| row.name == "outs").unwrap();
        assert!(why(row).starts_with("As IN. IN: "), "{}", why(row));
    }

    #[test]
    fn a_page_says_bytes_and_class() {
        let row = INSTRUCTIONS.iter().find(|row| row.name == "smsw").unwrap();
        let page = explain(row, None);
        assert!(page.starts_with("smsw: Stores the machine status word: the low half of CR0.\n"));
        assert!(page.contains("\n  bytes    0f 01 e0\n"), "{page}");
        assert!(page.contains("behaviour-sensitive") && page.contains("seventeen"), "{page}");
    }
}
