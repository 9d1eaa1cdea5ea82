//! A report as single facts that two reports can be compared by: what, where, and what was found.
//! Called by `compare`; data only. Times, and counters that others' work moves, are no facts.

use super::report::{Cell, ContextFinding, Entered, Msr, Ran, Report, answer};

/// The topics, in the order of a comparison.
pub const TOPICS: [&str; 9] = [
    "summary",
    "leaks",
    "modes and rings",
    "instructions",
    "CPUID",
    "MSRs",
    "clocks",
    "the hardware's help",
    "theory",
];

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// One of [`TOPICS`].
    pub topic: &'static str,
    /// Of what.
    pub what: String,
    /// The mode and the ring, or nothing.
    pub place: String,
    /// What.
    pub says: String,
}

/// MSRs whose values go on by themselves.
const RUNNING: &[&str] =
    &["TIME_STAMP", "MPERF", "APERF", "SMI_COUNT", "THERM_STATUS", "PERF_STATUS", "ENERGY_STATUS"];

/// All of them.
pub fn of(report: &Report) -> Vec<Fact> {
    let mut facts = vec![];
    let mut note = |topic, what: &str, place: &str, says: String| {
        facts.push(Fact { topic, what: what.to_owned(), place: place.to_owned(), says });
    };
    summary(report, &mut note);
    for leak in &report.leaks {
        for place in &leak.contexts {
            note("leaks", &leak.by, place, leak.why.clone());
        }
    }
    for context in &report.contexts {
        note("modes and rings", "how it runs", &context.name, mode(context));
    }
    instructions(report, &mut note);
    cpuid(report, &mut note);
    for msr in &report.msrs {
        note("MSRs", &format!("{} ({})", msr.name, msr.index), "", self::msr(msr));
    }
    for clock in &report.clocks {
        let whose = clock.whose.map_or(String::new(), |whose| format!(" ({})", whose.words()));
        note("clocks", &clock.name, "", clock.found.clone() + &whose);
    }
    for help in &report.help {
        let says =
            format!("host {}, guest {}: {}", answer(help.host), answer(help.guest), help.found);
        note("the hardware's help", &help.name, "", says);
    }
    theory(report, &mut note);
    facts
}

type Note<'a> = dyn FnMut(&'static str, &str, &str, String) + 'a;

fn summary(report: &Report, note: &mut Note<'_>) {
    let host = &report.host;
    let mut say = |what: &str, says: String| note("summary", what, "", says);
    say("backend", host.backend.clone());
    say("kernel", host.kernel.clone());
    say("processor", host.processor.clone());
    say("version of ringfence", report.ringfence.clone());
    say("KVM's own counters", answer(Some(host.counters)).to_owned());
    say("the host's own values could be read", answer(Some(host.native)).to_owned());
    let untold = host.exit_reasons_untold.clone();
    say("reasons of exits", untold.map_or("told".to_owned(), |why| format!("not told: {why}")));
    say("leaks", report.leaks.len().to_string());
    say("cells that show the host's", report.host_cells().to_string());
    let dead = report.instructions.iter().flat_map(|row| &row.cells);
    let dead = dead.filter(|cell| cell.ran == Ran::CouldNotRun).count();
    say("cells that could not run", dead.to_string());
    let shown = report.cpuid.masked.iter().filter(|bit| !bit.shown_in.is_empty()).count();
    say("masked features that show", format!("{shown} of {}", report.cpuid.masked.len()));
    say("leaves of CPUID that are not as told", format!("{}", report.cpuid.wrong.len()));
    let holds = if report.theory.trap_and_emulate { "holds" } else { "does not hold" };
    say("trap and emulate", holds.to_owned());
}

fn mode(context: &ContextFinding) -> String {
    let entered = match context.entered {
        Entered::ByTheGuest => "entered by the guest, ",
        Entered::ByRegisters => "entered by KVM_SET_SREGS, ",
        Entered::No => "",
    };
    let words = context.words.as_ref().map_or(String::new(), |words| format!(" ({words})"));
    format!("ring {}, {entered}{}{words}", context.ring, context.how())
}

fn instructions(report: &Report, note: &mut Note<'_>) {
    for row in &report.instructions {
        let seventeen = if row.seventeen { ", one of the seventeen" } else { "" };
        let class = row.classes() + seventeen;
        note("instructions", &format!("{}: class", row.name), "", class);
        for cell in &row.cells {
            note("instructions", &row.name, &cell.context, self::cell(cell));
        }
    }
}

/// What happened and what was seen, without times.
fn cell(cell: &Cell) -> String {
    let mut says = cell.event();
    if matches!(cell.ran, Ran::TrappedKvm | Ran::TrappedUser) {
        let counted = |number: Option<f64>| number.filter(|number| *number >= 0.5);
        if let Some(exits) = counted(cell.exits).filter(|exits| *exits >= 1.5) {
            says += &format!(", {exits:.0} exits");
        }
        if !cell.reasons.is_empty() {
            says += &format!(" ({})", cell.reasons.join(", "));
        }
    }
    if let Some(seen) = &cell.seen {
        let values = if seen.what == super::sight::CLOCK {
            String::new() // it goes on
        } else {
            let host = seen.host.as_ref().map_or(String::new(), |host| format!(", host's {host}"));
            format!(" {} (own {}{host})", seen.value, seen.own)
        };
        says += &format!("; saw {}{values}: {}", seen.what, seen.whose.words());
    }
    if !cell.as_manual {
        let manual = cell.manual.as_deref().unwrap_or("leaves it to the processor");
        says += &format!("; not as the manuals say, by which it {manual}");
    }
    if let Some(words) = &cell.words {
        says += &format!(" [{words}]");
    }
    says
}

fn cpuid(report: &Report, note: &mut Note<'_>) {
    note("CPUID", "leaves compared", "", report.cpuid.leaves.to_string());
    for leaf in &report.cpuid.wrong {
        let says = format!(
            "{} instead of {}, host's {}; {} of {} bits as the host has them: {}{}",
            leaf.value,
            leaf.own,
            leaf.host,
            leaf.host_bits,
            leaf.bits,
            leaf.whose.words(),
            if leaf.changed_by_kvm { ", changed in KVM's table" } else { "" }
        );
        note("CPUID", &format!("leaf {}", leaf.leaf), &leaf.context, says);
    }
    for bit in &report.cpuid.masked {
        let says = match &bit.shown_in[..] {
            [] => "stays masked".to_owned(),
            some => format!("shows in {}", some.join(", ")),
        };
        note("CPUID", &format!("masked {}", bit.name), "", says);
    }
}

fn msr(msr: &Msr) -> String {
    let running = RUNNING.iter().any(|word| msr.name.contains(word));
    let mut says = match &msr.value {
        None => "an exception".to_owned(),
        Some(_) if running => "read".to_owned(),
        Some(value) => value.clone(),
    };
    if let Some(whose) = msr.whose {
        says += &format!(", {}", whose.words());
    }
    if let Some(host) = msr.host.as_ref().filter(|_| !running) {
        says += &format!(" (host's {host})");
    }
    if msr.foreign {
        says += ", the machine's";
    }
    match msr.writable {
        Some(true) => says + ", takes a write",
        Some(false) => says + ", refuses a write",
        None => says,
    }
}

fn theory(report: &Report, note: &mut Note<'_>) {
    let mut say = |what: &str, says: String| note("theory", what, "", says);
    let theory = &report.theory;
    let list = |names: &[String]| format!("{}: {}", names.len(), names.join(", "));
    say("sensitive instructions that do not trap", list(&theory.untrapped));
    say("the same with UMIP, TSD, CPUID faulting", list(&theory.untrapped_with_help));
    say(
        "sensitive instructions not on the guest's own state",
        list(&theory.untrapped_with_hardware),
    );
    say("untrapped ones that showed the guest's own", theory.own_seen.to_string());
    for property in &theory.properties {
        let holds = if property.holds { "holds" } else { "does not hold" };
        say(&property.name, format!("{holds}: {}", property.why));
    }
}
