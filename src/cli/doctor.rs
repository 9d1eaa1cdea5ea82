//! `ringfence doctor`: what the host can do, as text or JSON.

use std::io::{self, Write};

use super::args::DoctorArgs;
use super::terminal::takes_colour;
use crate::inspect::doctor::{self, Examination, Finding, Grade, Host};
use crate::kvm;
use crate::verdict::Refusal;

/// Looks at the host; gives back the exit code.
pub(super) fn examine(args: &DoctorArgs) -> u8 {
    let found = doctor::examine(&Host::here(), &args.kvm, kvm::offer(&args.kvm));
    let mut out = io::stdout().lock();
    let shown = if args.json {
        serde_json::to_writer_pretty(&mut out, &found)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        let colour = takes_colour(&out);
        print(&mut out, &found, colour)
    };
    match super::printed(shown) {
        0 if !found.usable => super::code(Refusal::NoKvm),
        code => code,
    }
}

fn print(out: &mut impl Write, found: &Examination, colour: bool) -> io::Result<()> {
    for finding in &found.findings {
        line(out, finding, colour)?;
    }
    let more = found.findings.iter().filter(|finding| finding.advice.is_some()).count();
    match (found.usable, more) {
        (true, 0) => writeln!(out, "\nGuests can run here."),
        (true, more) => writeln!(out, "\nGuests can run here. Pieces of advice: {more}."),
        (false, _) => writeln!(out, "\nNo guest can run here."),
    }
}

fn line(out: &mut impl Write, finding: &Finding, colour: bool) -> io::Result<()> {
    let (word, style) = match finding.grade {
        Grade::Good => ("ok", "32"),
        Grade::Missing => ("missing", "36"),
        Grade::Costs => ("costs", "33"),
        Grade::Fatal => ("fatal", "1;31"),
    };
    let (begin, end) =
        if colour { (format!("\x1b[{style}m"), "\x1b[0m") } else { (String::new(), "") };
    writeln!(out, "{begin}{word:8}{end} {:14} {}", finding.topic, finding.found)?;
    match &finding.advice {
        Some(advice) => writeln!(out, "{:23} -> {advice}", ""),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_only_where_it_is_wanted() {
        let finding = Finding {
            topic: "kvm",
            grade: Grade::Fatal,
            found: "there is none".to_owned(),
            advice: Some("get one".to_owned()),
        };
        let shown = |colour| {
            let mut out = vec![];
            line(&mut out, &finding, colour).unwrap();
            String::from_utf8(out).unwrap()
        };
        let plain = shown(false);
        assert!(plain.starts_with("fatal    kvm            there is none\n"), "{plain}");
        assert!(plain.ends_with("-> get one\n"), "{plain}");
        let coloured = shown(true);
        assert!(coloured.starts_with("\x1b[1;31mfatal"), "{coloured}");
        assert_eq!(coloured.replace("\x1b[1;31m", "").replace("\x1b[0m", ""), plain);
    }
}
