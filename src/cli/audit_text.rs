//! What an audit found, as tables for people.

use std::io::{self, IsTerminal, Write};

use super::terminal::takes_colour;
use crate::audit::Comparison;
use crate::audit::report::{
    Cell, Entered, InstructionFinding, Msr, NO_COUNTERS, NOT_COMPARED, Report, Whose, WrongLeaf,
    answer,
};

/// Colour, on a terminal only.
#[derive(Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    pub(super) fn of(out: &impl IsTerminal) -> Self {
        Self(takes_colour(out))
    }

    fn paint(self, style: &str, text: &str) -> String {
        if self.0 && !style.is_empty() {
            format!("\x1b[{style}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn head(self, text: &str) -> String {
        self.paint("1", text)
    }
}

pub(super) fn print(out: &mut impl Write, report: &Report, paint: Paint) -> io::Result<()> {
    let host = &report.host;
    writeln!(out, "{} on Linux {}, {}", host.backend, host.kernel, host.processor)?;
    if !host.counters {
        writeln!(out, "{NO_COUNTERS}")?;
    }
    if !host.native {
        wrapped(out, 0, NOT_COMPARED)?;
    }
    contexts(out, report, paint)?;
    instructions(out, report, paint)?;
    cpuid(out, report, paint)?;
    msrs(out, report, paint)?;
    clocks(out, report, paint)?;
    costs(out, report, paint)?;
    helps(out, report, paint)?;
    theory(out, report, paint)?;
    leaks(out, report, paint)
}

fn contexts(out: &mut impl Write, report: &Report, paint: Paint) -> io::Result<()> {
    writeln!(out, "\n{}", paint.head("Modes and rings"))?;
    for context in &report.contexts {
        let entered = match context.entered {
            Entered::ByTheGuest | Entered::No => "",
            Entered::ByRegisters => {
                "; entered by KVM_SET_SREGS, because the IRET there could not run"
            }
        };
        let (name, how) = (&context.name, context.how());
        let nop = context.nop_cycles.map(|nop| format!("; a NOP costs {nop} cycles"));
        let text = format!("{name:8} {how}{}{entered}", nop.unwrap_or_default());
        wrapped(out, 2, &text)?;
    }
    Ok(())
}

/// Columns of a cell.
const CELL: usize = 8;

fn instructions(out: &mut impl Write, report: &Report, paint: Paint) -> io::Result<()> {
    writeln!(out, "\n{}", paint.head("Instructions"))?;
    let heads: Vec<_> = report.contexts.iter().map(|c| format!("{:CELL$}", c.name)).collect();
    writeln!(out, "  {:13}{:3}{}", "", "", heads.concat().trim_end())?;
    type Group = (&'static str, fn(&InstructionFinding) -> bool);
    let groups: [Group; 4] = [
        ("sensitive, unprivileged: Robin and Irvine's seventeen", |row| row.seventeen),
        ("sensitive, unprivileged: the others", |row| {
            !row.seventeen && !row.privileged && row.sensitive != "innocuous"
        }),
        ("privileged", |row| row.privileged),
        ("innocuous", |row| !row.privileged && row.sensitive == "innocuous"),
    ];
    for (name, belongs) in groups {
        writeln!(out, "  {}", paint.paint("36", name))?;
        for row in report.instructions.iter().filter(|row| belongs(row)) {
            instruction(out, report, row, paint)?;
        }
    }
    writeln!(
        out,
        "  direct: KVM did nothing for it; emul: emulated by KVM; kvm, user: trapped into KVM, or on to"
    )?;
    writeln!(
        out,
        "  user space; #GP, #UD ...: exception in the guest; gate: the guest's handler; ring0, ring3:"
    )?;
    writeln!(out, "  the guest's kernel, in that ring; lost: it led to other code, which failed;")?;
    writeln!(out, "  dies: this KVM cannot run it; -: the processor has it not.")?;
    writeln!(out, "  b, c behind a name: behaviour-sensitive, control-sensitive.")?;
    writeln!(
        out,
        "  {} it saw the host's  {} neither's, a zero, or not to be told  {} not as the manuals say",
        paint.paint("1;31", "!"),
        paint.paint("33", "~"),
        paint.paint("33", "?")
    )?;
    writeln!(
        out,
        "  `ringfence audit --explain NAME` says what an instruction is, and what happened here."
    )
}

fn instruction(
    out: &mut impl Write,
    report: &Report,
    row: &InstructionFinding,
    paint: Paint,
) -> io::Result<()> {
    let mut line = format!("  {:12} {:3}", row.name, row.class());
    for context in &report.contexts {
        let cell = row.cells.iter().find(|cell| cell.context == context.name);
        let word = cell.map_or(String::new(), Cell::word);
        let padding = " ".repeat(CELL.saturating_sub(word.len()));
        let style = match word.chars().last() {
            Some('!') => "1;31",
            Some('~' | '?') => "33",
            _ if word == "dies" => "35",
            _ => "",
        };
        line += &(paint.paint(style, &word) + &padding);
    }
    writeln!(out, "{}", line.trim_end())
}

fn cpuid(out: &mut impl Write, report: &Report, paint: Paint) -> io::Result<()> {
    writeln!(out, "\n{}", paint.head("CPUID honesty"))?;
    let wrong = report.cpuid.wrong.len();
    writeln!(
        out,
        "  {wrong} of {} leaves (in rings 0 and 3) are not as KVM was told to show them",
        report.cpuid.leaves
    )?;
    for context in ["long/0", "long/3"] {
        let leaves: Vec<_> =
            report.cpuid.wrong.iter().filter(|leaf| leaf.context == context).collect();
        if !leaves.is_empty() {
            let host = leaves.iter().filter(|leaf| leaf.whose == Whose::Host).count();
            let sum = |bits: fn(&WrongLeaf) -> u32| leaves.iter().map(|it| bits(it)).sum::<u32>();
            let changed = leaves.iter().filter(|leaf| leaf.changed_by_kvm).count();
            let text = format!(
                "{context}: {} leaves are wrong, {host} of them show the host's bits ({} of the {} bits that are wrong); KVM_GET_CPUID2 tells {changed} of them as they show: there KVM changed its table",
                leaves.len(),
                sum(|leaf| leaf.host_bits),
                sum(|leaf| leaf.bits)
            );
            wrapped(out, 2, &text)?;
        }
    }
    let shown: Vec<_> = report.cpuid.masked.iter().filter(|bit| !bit.shown_in.is_empty()).collect();
    writeln!(
        out,
        "  {} features were masked, {} show all the same",
        report.cpuid.masked.len(),
        shown.len()
    )?;
    for bit in shown {
        writeln!(out, "    {} in {}", bit.name, bit.shown_in.join(", "))?;
    }
    Ok(())
}

fn msrs(out: &mut impl Write, report: &Report, paint: Paint) -> io::Result<()> {
    writeln!(out, "\n{}", paint.head("MSRs, read in ring 0 of long mode"))?;
    let hidden: Vec<_> =
        report.msrs.iter().filter(|msr| msr.value.is_none()).map(|msr| &msr.name[..]).collect();
    for msr in report.msrs.iter().filter(|msr| msr.value.is_some()) {
        let whose = msr.whose.map_or("", Whose::words);
        let style = if msr.whose == Some(Whose::Host) { "1;31" } else { "" };
        let writable = match msr.writable {
            Some(true) => ", writable",
            Some(false) => ", not writable",
            None => "",
        };
        let value = msr.value.as_deref().unwrap_or("");
        writeln!(
            out,
            "  {:10} {:26} {:18} {}{writable}",
            msr.index,
            msr.name,
            value,
            paint.paint(style, whose)
        )?;
    }
    writes(out, report)?;
    let hidden = hidden.iter().map(|name| &name[..]).collect::<Vec<_>>();
    wrapped(out, 2, &format!("an exception ({}): {}", hidden.len(), hidden.join(" ")))
}

/// What the machine's own registers did with a write.
fn writes(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let named = |belongs: &dyn Fn(&&Msr) -> bool| {
        let msrs = report.msrs.iter().filter(|msr| msr.foreign).filter(belongs);
        msrs.map(|msr| &msr.name[..]).collect::<Vec<_>>()
    };
    let is_told = |msr: &&Msr| msr.whose != Some(Whose::Unknown);
    let taken = named(&|msr| msr.writable == Some(true) && is_told(msr));
    let untold = named(&|msr| msr.writable == Some(true) && !is_told(msr));
    let refused = named(&|msr| msr.writable == Some(false));
    let list = |names: &[&str]| match names {
        [] => "none".to_owned(),
        some => format!("{} ({})", some.len(), some.join(", ")),
    };
    let text = format!(
        "registers of the machine's, written with what was read there: taken, into a copy or nowhere, unless it is the host's above: {}; taken, and where it went is not told: {}; an exception: {}",
        list(&taken),
        list(&untold),
        list(&refused)
    );
    wrapped(out, 2, &text)
}

fn clocks(out: &mut impl Write, report: &Report, paint: Paint) -> io::Result<()> {
    writeln!(out, "\n{}", paint.head("Clocks"))?;
    for clock in &report.clocks {
        let style = if clock.whose == Some(Whose::Host) { "1;31" } else { "" };
        writeln!(out, "  {:24} {}", clock.name, paint.paint(style, &clock.found))?;
    }
    Ok(())
}

fn costs(out: &mut impl Write, report: &Report, paint: Paint) -> io::Result<()> {
    writeln!(
        out,
        "\n{}",
        paint
            .head("What exits cost, in long mode (cycles of the guest's clock: median, quartiles)")
    )?;
    for cost in &report.costs {
        let spread = format!("{:.0} to {:.0}", cost.spread[0], cost.spread[1]);
        let (name, context) = (&cost.name, &cost.context);
        writeln!(out, "  {name:38} {context} {:>8.0} {spread:>18}  {}", cost.cycles, cost.words())?;
    }
    if let Some(why) = &report.host.exit_reasons_untold {
        writeln!(out, "  Which exits these are is not told: {why}.")?;
    }
    Ok(())
}

fn helps(out: &mut impl Write, report: &Report, paint: Paint) -> io::Result<()> {
    writeln!(out, "\n{}", paint.head("The hardware's help"))?;
    for help in &report.help {
        writeln!(
            out,
            "  {:26} host {:3}  guest {:3}  {}",
            help.name,
            answer(help.host),
            answer(help.guest),
            help.found
        )?;
    }
    Ok(())
}

fn theory(out: &mut impl Write, report: &Report, paint: Paint) -> io::Result<()> {
    let theory = &report.theory;
    writeln!(out, "\n{}", paint.head("Popek and Goldberg"))?;
    if theory.trap_and_emulate {
        writeln!(out, "  trap and emulate holds: every sensitive instruction traps in ring 3")?;
    } else {
        writeln!(
            out,
            "  trap and emulate does not hold: these sensitive instructions run in ring 3 without the"
        )?;
        writeln!(out, "  kernel in ring 0 being told ({}):", theory.untrapped.len())?;
        wrapped(out, 4, &list(&theory.untrapped))?;
        writeln!(
            out,
            "  with UMIP, TSD and CPUID faulting, where the guest has them ({}):",
            theory.untrapped_with_help.len()
        )?;
        wrapped(out, 4, &list(&theory.untrapped_with_help))?;
        wrapped(out, 2, &theory.with_hardware())?;
    }
    writeln!(out, "  of this host's KVM:")?;
    for property in &theory.properties {
        let holds = if property.holds {
            paint.paint("32", "holds")
        } else {
            paint.paint("33", "does not hold")
        };
        let (name, asks) = (&property.name, &property.asks);
        wrapped(out, 4, &format!("{name}: {holds} ({asks}): {}", property.why))?;
    }
    Ok(())
}

fn leaks(out: &mut impl Write, report: &Report, paint: Paint) -> io::Result<()> {
    leaks_found(out, report, paint)?;
    let cells = report.unknown_cells();
    if !cells.is_empty() {
        let text = format!(
            "{} values that instructions showed are not told: this host lets no program read its own: {}",
            cells.len(),
            list(&cells)
        );
        wrapped(out, 0, &text)?;
    }
    let msrs = report.unknown_msrs();
    if !msrs.is_empty() {
        let text = format!(
            "{} MSRs are not told: the host's cannot be read (as root, modprobe msr): {}",
            msrs.len(),
            msrs.join(", ")
        );
        wrapped(out, 0, &text)?;
    }
    Ok(())
}

fn leaks_found(out: &mut impl Write, report: &Report, paint: Paint) -> io::Result<()> {
    if report.is_isolated() {
        return writeln!(
            out,
            "\n{}",
            paint.paint("1;32", "Nothing of the host's was seen by the guest.")
        );
    }
    writeln!(
        out,
        "\n{}",
        paint.paint(
            "1;31",
            &format!("Of the host's a guest sees or reaches ({}):", report.leaks.len())
        )
    )?;
    for leak in &report.leaks {
        let text = format!("{} in {}: {}", leak.by, leak.contexts.join(", "), leak.what);
        wrapped(out, 2, &text)?;
        wrapped(out, 6, &leak.why)?;
    }
    Ok(())
}

pub(super) fn print_comparison(
    out: &mut impl Write,
    found: &Comparison,
    paint: Paint,
) -> io::Result<()> {
    if found.equal {
        return writeln!(out, "The two audits found the same.");
    }
    for (name, host) in ["A", "B"].iter().zip(&found.hosts) {
        writeln!(out, "{}  {}", paint.head(name), plain(host))?;
    }
    if found.differences.is_empty() {
        return writeln!(
            out,
            "Nothing differs but what was measured, and that no more than it spreads."
        );
    }
    let mut topic = "";
    for difference in &found.differences {
        if difference.topic != topic {
            topic = &difference.topic;
            writeln!(out, "\n{}", paint.head(&plain(topic)))?;
        }
        wrapped(out, 2, &plain(&difference.what))?;
        wrapped(out, 6, &format!("A: {}", plain(&difference.first)))?;
        wrapped(out, 6, &format!("B: {}", plain(&difference.second)))?;
    }
    Ok(())
}

/// Text of a file: what would control a terminal is spelt out.
pub(super) fn plain(text: &str) -> String {
    let spelt = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    text.chars().map(spelt).collect()
}

/// Columns of a line of text.
const WIDTH: usize = 100;

/// A paragraph behind `indent` columns; its further lines lie two columns deeper.
fn wrapped(out: &mut impl Write, indent: usize, text: &str) -> io::Result<()> {
    let mut line = " ".repeat(indent);
    let mut empty = true;
    for word in text.split(' ') {
        if !empty && line.len() + 1 + word.len() > WIDTH {
            writeln!(out, "{}", line.replace(TOGETHER, " "))?;
            line = " ".repeat(indent + 2);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line += word;
        empty = false;
    }
    writeln!(out, "{}", line.replace(TOGETHER, " "))
}

/// A space that no line ends at.
const TOGETHER: &str = "\u{a0}";

/// Names of instructions, each in one piece.
fn list(names: &[String]) -> String {
    let whole = |name: &String| name.replace(' ', TOGETHER);
    names.iter().map(whole).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_a_file_do_not_control_the_terminal() {
        assert_eq!(plain("a\u{1b}[2J\u{9b}b\n"), "a\\u{1b}[2J\\u{9b}b\\n");
    }

    #[test]
    fn long_lists_are_wrapped() {
        let mut out = vec![];
        let names = vec!["mov r, cs".to_owned(); 30];
        wrapped(&mut out, 4, &list(&names)).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("mov r, cs").count(), 30);
        assert!(text.lines().count() > 2 && text.lines().all(|line| line.len() <= WIDTH));
    }
}
