//! One instruction, explained: what it does, why it is sensitive, and what this host did with it.
//! Called by `cli`; text only.

use std::fmt::Write;

use super::One;
use super::instruction::Instruction;
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
    say("  why", row.why);
    say("  exits", row.exits);
    if let Some(found) = found {
        page.push('\n');
        here(&mut page, found);
    }
    page
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
        wrap(page, "", "KVM has no counters here: what trapped is inferred from the time it took.");
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
    let privileged = if row.is_privileged() {
        "privileged (it traps outside ring 0)"
    } else {
        "unprivileged (it does not trap by itself in ring 3)"
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
    use super::super::table::INSTRUCTIONS;
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
    fn a_page_says_bytes_and_class() {
        let row = INSTRUCTIONS.iter().find(|row| row.name == "smsw").unwrap();
        let page = explain(row, None);
        assert!(page.starts_with("smsw: Stores the machine status word: the low half of CR0.\n"));
        assert!(page.contains("\n  bytes    0f 01 e0\n"), "{page}");
        assert!(page.contains("behaviour-sensitive") && page.contains("seventeen"), "{page}");
    }
}
