//! An audit as one page that needs nothing else: the machine drawn as layers with the findings on
//! it (`picture`), and the tables. Called by `cli`; text only.

mod picture;

use std::fmt::Write;

use super::report::{Cell, InstructionFinding, NO_COUNTERS, NOT_COMPARED, Report, Whose, answer};
use super::table::INSTRUCTIONS;
use super::theory;

const STYLE: &str = include_str!("style.css");

/// The page.
pub fn page(report: &Report) -> String {
    let host = &report.host;
    let title = format!("ringfence audit: {}", host.backend);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>{}</title>\n<style>{STYLE}</style></head><body>\n",
        escape(&title)
    );
    let _ = writeln!(page, "<h1>{}</h1>", escape(&title));
    let _ = writeln!(
        page,
        "<p>{}, Linux {}, {}; ringfence {}</p>",
        escape(&host.backend),
        escape(&host.kernel),
        escape(&host.processor),
        escape(&report.ringfence)
    );
    if !host.counters {
        let _ = writeln!(page, "<p>{NO_COUNTERS}</p>");
    }
    verdict(&mut page, report);
    page += &picture::draw(report);
    leaks(&mut page, report);
    instructions(&mut page, report);
    theory_part(&mut page, report);
    tables(&mut page, report);
    page += "</body></html>\n";
    page
}

fn verdict(page: &mut String, report: &Report) {
    let (class, text) = match report.leaks.len() {
        0 => ("good", "Nothing of the host's was seen by the guest.".to_owned()),
        n => ("bad", format!("A guest sees or reaches something of the host's in {n} ways.")),
    };
    let unknown = report.unknown_msrs();
    let unknown = match unknown.len() {
        0 => String::new(),
        n => format!(
            " Of {n} MSRs it is not known: the host's cannot be read (as root, modprobe msr)."
        ),
    };
    let cells = match report.unknown_cells().len() {
        0 => String::new(),
        n => format!(
            " Of {n} values that instructions showed it is not known: this host lets no program read its own."
        ),
    };
    let _ = writeln!(page, "<p class=\"verdict {class}\">{text}{unknown}{cells}</p>");
    if !report.host.native {
        let _ = writeln!(page, "<p class=\"verdict bad\">{}</p>", escape(NOT_COMPARED));
    }
}

fn leaks(page: &mut String, report: &Report) {
    if report.is_isolated() {
        return;
    }
    *page += "<h2>What leaks</h2>\n";
    let rows = report.leaks.iter().map(|leak| {
        vec![leak.by.clone(), leak.contexts.join(", "), leak.what.clone(), leak.why.clone()]
    });
    table(page, &["by", "in", "what", "because"], rows);
}

/// The matrix; a cell says more when it is pointed at.
fn instructions(page: &mut String, report: &Report) {
    *page += "<h2>Instructions, in each mode and ring</h2>\n<table class=\"matrix\"><tr><th></th><th>class</th>";
    for context in &report.contexts {
        let _ = write!(page, "<th>{}</th>", escape(&context.name));
    }
    *page += "</tr>\n";
    for row in &report.instructions {
        matrix_row(page, report, row);
    }
    *page += "</table>\n<p class=\"legend\">Point at a name or a cell to read more. \
        <span class=\"direct\">direct</span>: KVM did nothing for it; \
        <span class=\"emul\">emul</span>: emulated by KVM; <span class=\"kvm\">kvm</span>, \
        <span class=\"user\">user</span>: trapped into KVM, or on to user space; \
        <span class=\"fault\">#GP</span>: an exception in the guest; \
        <span class=\"fault\">lost</span>: it led to other code, which failed; \
        <span class=\"dies\">dies</span>: KVM cannot run it; \
        <span class=\"host\">!</span> the guest saw the host's; ~ neither its own nor the host's, a zero, or not to be told; \
        ? not as the manuals say. &#9733; one of Robin and Irvine's seventeen; \
        <span class=\"sensitive\">name</span> sensitive and unprivileged.</p>\n";
}

fn matrix_row(page: &mut String, report: &Report, row: &InstructionFinding) {
    let known = INSTRUCTIONS.iter().find(|known| known.name == row.name);
    let title = known.map_or(String::new(), |known| format!("{} {}", known.about, known.why));
    let star = if row.seventeen { " &#9733;" } else { "" };
    let kind = match (row.privileged, &row.sensitive[..]) {
        (true, _) => "privileged",
        (false, "innocuous") => "innocuous",
        _ => "sensitive",
    };
    let _ = write!(
        page,
        "<tr><th class=\"{kind}\" title=\"{}\">{}{star}</th><td class=\"class\">{}</td>",
        escape(&title),
        escape(&row.name),
        escape(&row.classes())
    );
    for context in &report.contexts {
        match row.cells.iter().find(|cell| cell.context == context.name) {
            None => *page += "<td></td>",
            Some(cell) => {
                let words = cell.words.as_ref().map_or(String::new(), |words| format!(". {words}"));
                let title = format!("{}. Because: {}{words}", cell.sentence(), theory::why(cell));
                let (class, word) = (class(cell), cell.word());
                let _ = write!(
                    page,
                    "<td class=\"{class}\" title=\"{}\">{}</td>",
                    escape(&title),
                    escape(&word)
                );
            }
        }
    }
    *page += "</tr>\n";
}

fn class(cell: &Cell) -> &'static str {
    use super::report::Ran;
    if cell.seen.as_ref().is_some_and(|seen| seen.whose == Whose::Host) {
        return "host";
    }
    match cell.ran {
        Ran::Direct => "direct",
        Ran::Emulated => "emul",
        Ran::TrappedKvm => "kvm",
        Ran::TrappedUser => "user",
        Ran::Faulted | Ran::Elsewhere | Ran::Gate | Ran::Landed => "fault",
        Ran::CouldNotRun => "dies",
        Ran::Absent => "absent",
    }
}

fn theory_part(page: &mut String, report: &Report) {
    let theory = &report.theory;
    *page += "<h2>Popek and Goldberg</h2>\n";
    let text = if theory.trap_and_emulate {
        "Trap and emulate holds: every sensitive instruction traps in ring 3.".to_owned()
    } else {
        format!(
            "Trap and emulate does not hold. {} sensitive instructions run in ring 3 without the \
             kernel in ring 0 being told: {}. With UMIP, TSD and CPUID faulting, where the guest \
             has them, {} are left; {}.",
            theory.untrapped.len(),
            theory.untrapped.join(", "),
            theory.untrapped_with_help.len(),
            theory.with_hardware()
        )
    };
    let _ = writeln!(page, "<p>{}</p>", escape(&text));
    let rows = theory.properties.iter().map(|property| {
        let holds = if property.holds { "holds" } else { "does not hold" };
        vec![property.name.clone(), property.asks.clone(), holds.to_owned(), property.why.clone()]
    });
    table(page, &["property", "asks that", "of this host's KVM", "because"], rows);
}

fn tables(page: &mut String, report: &Report) {
    *page += "<h2>What exits cost, in long mode</h2>\n";
    costs(page, report);
    *page += "<h2>The hardware's help</h2>\n";
    let helps = report.help.iter().map(|help| {
        vec![
            help.name.clone(),
            answer(help.host).into(),
            answer(help.guest).into(),
            help.found.clone(),
        ]
    });
    table(page, &["help", "host", "guest", "found"], helps);
    *page += "<h2>Clocks</h2>\n";
    let clocks = report.clocks.iter().map(|clock| vec![clock.name.clone(), clock.found.clone()]);
    table(page, &["clock", "found"], clocks);
    *page += "<h2>CPUID</h2>\n";
    let _ = writeln!(
        page,
        "<p>{} of {} leaves are not as KVM was told to show them.</p>",
        report.cpuid.wrong.len(),
        report.cpuid.leaves
    );
    let wrong = report.cpuid.wrong.iter().map(|leaf| {
        vec![
            leaf.leaf.clone(),
            leaf.context.clone(),
            leaf.value.clone(),
            leaf.own.clone(),
            format!("{} of {}", leaf.host_bits, leaf.bits),
            if leaf.changed_by_kvm { "yes" } else { "no" }.to_owned(),
            leaf.whose.words().into(),
        ]
    });
    let heads = [
        "leaf",
        "in",
        "seen (EAX EBX ECX EDX)",
        "told to show",
        "the host's bits",
        "KVM_GET_CPUID2 tells it",
        "whose",
    ];
    table(page, &heads, wrong);
    let masked = report.cpuid.masked.iter().map(|bit| {
        let shown = bit.shown_in.join(", ");
        vec![bit.name.clone(), if shown.is_empty() { "nowhere".to_owned() } else { shown }]
    });
    table(page, &["masked feature", "shows in"], masked);
    *page += "<h2>MSRs, read in ring 0 of long mode</h2>\n";
    let msrs = report.msrs.iter().map(|msr| {
        let value = msr.value.clone().unwrap_or_else(|| "#GP".to_owned());
        let whose = msr.whose.map_or("", Whose::words).to_owned();
        let write = match (msr.writable, msr.foreign) {
            (Some(true), true) => "takes it, though it is the machine's",
            (Some(true), false) => "takes it",
            (Some(false), _) => "an exception",
            (None, _) => "",
        };
        let about = msr.about.clone();
        vec![msr.index.clone(), msr.name.clone(), value, whose, write.to_owned(), about]
    });
    table(
        page,
        &["MSR", "name", "value", "whose", "written with what was read", "would tell"],
        msrs,
    );
}

/// Bars on a logarithmic scale: a NOP and an exit to user space fit on one.
fn costs(page: &mut String, report: &Report) {
    let most = report.costs.iter().map(|cost| cost.cycles).fold(1.0, f64::max).ln_1p();
    *page += "<table class=\"costs\">\n";
    for cost in &report.costs {
        let width = cost.cycles.max(0.0).ln_1p() / most * 100.0;
        let _ = writeln!(
            page,
            "<tr><th>{}</th><td>{}</td><td class=\"number\">{:.0}</td><td class=\"number\">{:.0} to {:.0}</td><td class=\"bar\"><div style=\"width:{width:.1}%\"></div></td><td>{}</td></tr>",
            escape(&cost.name),
            escape(&cost.context),
            cost.cycles,
            cost.spread[0],
            cost.spread[1],
            escape(&cost.words())
        );
    }
    *page += "</table>\n<p class=\"legend\">Cycles of the guest's clock, median and quartiles, \
        on a logarithmic scale.</p>\n";
    if let Some(why) = &report.host.exit_reasons_untold {
        let _ = writeln!(page, "<p>Which exits these are is not told: {}.</p>", escape(why));
    }
}

fn table(page: &mut String, heads: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    *page += "<table><tr>";
    for head in heads {
        let _ = write!(page, "<th>{head}</th>");
    }
    *page += "</tr>\n";
    for row in rows {
        *page += "<tr>";
        for cell in row {
            let _ = write!(page, "<td>{}</td>", escape(&cell));
        }
        *page += "</tr>\n";
    }
    *page += "</table>\n";
}

/// For text and for attributes in double quotes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
