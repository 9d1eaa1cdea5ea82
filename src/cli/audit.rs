//! `ringfence audit`: how well this host is isolated, as tables, JSON or a page; two hosts compared.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use super::args::AuditArgs;
use super::audit_text::{self, Paint};
use crate::audit::instruction::Instruction;
use crate::audit::report::{NOT_COMPARED, Report};
use crate::audit::table::INSTRUCTIONS;
use crate::audit::{self, Error};
use crate::kvm;
use crate::machine::{chain, write_whole};
use crate::verdict::Refusal;

/// Does what was asked for; gives back the exit code.
pub(super) fn audit(args: &AuditArgs) -> u8 {
    if let [first, second] = &args.compare[..] {
        return compare(args, first, second);
    }
    if let Some(name) = &args.explain {
        return explain(args, name);
    }
    if args.json && is_page_alone(args) {
        super::tell(format_args!("--json and --html - would both write to standard output"));
        return super::code(Refusal::Usage);
    }
    let mut progress = |what: &str| {
        if io::stderr().is_terminal() && !args.quiet {
            let _ = write!(io::stderr(), "\r\x1b[Kringfence: trying {what} ...");
        }
    };
    let found = audit::audit(&args.kvm, &mut progress);
    if io::stderr().is_terminal() && !args.quiet {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    match found {
        Ok(report) => show(args, &report),
        Err(e) => refused(&e),
    }
}

/// 0 where nothing of the host's leaks, 1 where something does; that nothing does is not said where
/// there was nothing to compare with.
fn show(args: &AuditArgs, report: &Report) -> u8 {
    if let Some(path) = &args.html
        && let Err(e) = write_whole(path, audit::page(report).as_bytes())
    {
        super::tell(format_args!("cannot write the page {}: {e}", path.display()));
        return super::code(Refusal::Host);
    }
    let mut out = io::stdout().lock();
    let shown = if is_page_alone(args) {
        Ok(())
    } else if args.json {
        serde_json::to_writer_pretty(&mut out, report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        let paint = Paint::of(&out);
        audit_text::print(&mut out, report, paint)
    };
    match super::printed(shown) {
        0 if report.is_isolated() && !report.host.native => {
            super::tell(format_args!("{NOT_COMPARED}"));
            super::code(Refusal::Host)
        }
        0 => u8::from(!report.is_isolated()),
        code => code,
    }
}

/// Does the page go to standard output?
fn is_page_alone(args: &AuditArgs) -> bool {
    args.html.as_deref() == Some(Path::new("-"))
}

fn explain(args: &AuditArgs, name: &str) -> u8 {
    let Some(row) = find(name) else {
        let near = match &near(name)[..] {
            [] => "`ringfence audit` lists those that are".to_owned(),
            names => format!("do you mean {}?", names.join(" or ")),
        };
        super::tell(format_args!("no instruction {name:?} is audited; {near}"));
        return super::code(Refusal::Usage);
    };
    let found = audit::audit_one(&args.kvm, row);
    let page = audit::explain(row, found.as_ref().ok());
    match super::printed(io::stdout().write_all(page.as_bytes())) {
        0 => found.err().map_or(0, |e| refused(&e)),
        code => code,
    }
}

/// By its name, or by the first row of its mnemonic.
fn find(name: &str) -> Option<&'static Instruction> {
    let name = name.trim().to_lowercase();
    let whole = INSTRUCTIONS.iter().find(|row| row.name == name);
    whole.or_else(|| INSTRUCTIONS.iter().find(|row| row.name.split(' ').next() == Some(&name)))
}

/// Names that somebody may have meant: with all the words, or a mnemonic that is nearly the same.
fn near(name: &str) -> Vec<String> {
    /// Letters that may be wrong, missing or too many.
    const SLIPS: usize = 1;
    let words = |name: &str| -> Vec<String> {
        let words = name.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_lowercase).collect()
    };
    let asked = words(name);
    let Some(mnemonic) = asked.first() else { return vec![] };
    let is_near = |row: &str| {
        let have = words(row);
        asked.iter().all(|word| have.contains(word))
            || asked.len() == 1 && strsim::osa_distance(&have[0], mnemonic) <= SLIPS
    };
    let names = INSTRUCTIONS.iter().map(|row| row.name).filter(|name| is_near(name));
    names.map(|name| format!("{name:?}")).collect()
}

fn compare(args: &AuditArgs, first: &Path, second: &Path) -> u8 {
    let (first, second) = match (read(first), read(second)) {
        (Ok(first), Ok(second)) => (first, second),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    let found = audit::compare(&first, &second);
    let mut out = io::stdout().lock();
    let shown = if args.json {
        serde_json::to_writer_pretty(&mut out, &found.differences)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        let paint = Paint::of(&out);
        audit_text::print_comparison(&mut out, &found, paint)
    };
    super::printed(shown)
}

fn read(path: &Path) -> Result<Report, u8> {
    let bytes = fs::read(path).map_err(|e| {
        super::tell(format_args!("cannot read {}: {e}", path.display()));
        super::code(Refusal::NoImage)
    })?;
    let text = str::from_utf8(&bytes).map_err(|e| format!("it is no UTF-8 text: {e}"));
    let report = text.and_then(|text| Report::parse(text.trim_start_matches('\u{feff}')));
    report.map_err(|e| {
        super::tell(format_args!(
            "{} is not what `ringfence audit --json` writes: {}",
            path.display(),
            audit_text::plain(&e)
        ));
        super::code(Refusal::BadImage)
    })
}

fn refused(error: &Error) -> u8 {
    super::tell(format_args!("{}", chain(error)));
    let no_kvm = matches!(error, Error::Kvm(e) if kvm::Error::is_no_kvm(e));
    super::code(if no_kvm { Refusal::NoKvm } else { Refusal::Host })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_may_have_meant() {
        assert_eq!(near("mov cr3"), ["\"mov r, cr3\"", "\"mov cr3, r\""]);
        assert_eq!(near("retf"), ["\"ret far\""]);
        assert_eq!(near("iretq"), ["\"iret\""]);
        assert_eq!(near("SMWS"), ["\"smsw\""]);
        assert!(near("").is_empty() && near("frobnicate").is_empty());
        assert_eq!(find(" In ").map(|row| row.name), Some("in"));
    }
}
