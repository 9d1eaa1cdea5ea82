//! What Popek and Goldberg's theorem says of what was found: does trap and emulate hold, and does
//! this host's KVM have the three properties of a virtual machine monitor? Called by the audit.

use super::report::{
    Cell, Clock, Cpuid, InstructionFinding, KVMCLOCK, Leak, MaskedBit, Msr, Property, Ran, Report,
    Seen, Theory, Whose, WrongLeaf,
};
use super::sight::FEATURES;

/// Rings in which a program runs.
const PROGRAMS: [&str; 3] = ["prot/3", "long/3", "comp/3"];

/// The verdict. `helped` are the instructions that trap in ring 3 when the helps are on.
pub fn judge(rows: &[InstructionFinding], helped: &[String], leaks: &[Leak]) -> Theory {
    let untrapped: Vec<_> = rows.iter().filter(|row| is_untrapped(row)).collect();
    let names = |rows: &[&InstructionFinding]| -> Vec<String> {
        rows.iter().map(|row| row.name.clone()).collect()
    };
    let astray: Vec<_> = untrapped.iter().copied().filter(|row| is_astray(row)).collect();
    let shows_own = |row: &&&InstructionFinding| {
        in_programs(row).any(|cell| whose(cell) == Some(Whose::Own)) && !is_astray(row)
    };
    let own_seen = untrapped.iter().filter(shows_own).count();
    let untrapped = names(&untrapped);
    let left = untrapped.iter().filter(|name| !helped.contains(name)).cloned().collect();
    Theory {
        trap_and_emulate: untrapped.is_empty(),
        untrapped,
        untrapped_with_help: left,
        untrapped_with_hardware: names(&astray),
        own_seen,
        properties: vec![equivalence(rows), resource_control(leaks), efficiency(rows)],
    }
}

fn in_programs(row: &InstructionFinding) -> impl Iterator<Item = &Cell> {
    row.cells.iter().filter(|cell| PROGRAMS.contains(&&cell.context[..]))
}

fn whose(cell: &Cell) -> Option<Whose> {
    cell.seen.as_ref().map(|seen| seen.whose)
}

/// In a program it acts on something else than the guest's own state: whosever a value is that
/// cannot be told, the guest's own is another.
fn is_astray(row: &InstructionFinding) -> bool {
    in_programs(row).filter(|cell| cell.ran != Ran::Absent).any(|cell| {
        !cell.as_manual
            || matches!(
                whose(cell),
                Some(Whose::Host | Whose::Constant | Whose::Zero | Whose::Unknown)
            )
    })
}

/// Sensitive, and a program executes it without the guest's kernel being told.
fn is_untrapped(row: &InstructionFinding) -> bool {
    let runs = |cell: &Cell| {
        let ran = matches!(cell.ran, Ran::Direct | Ran::Emulated | Ran::TrappedKvm);
        ran && PROGRAMS.contains(&&cell.context[..])
    };
    // A call of the hypervisor is meant for it, not for the guest's kernel.
    let for_hypervisor = row.name.starts_with("vm");
    row.sensitive != "innocuous" && !for_hypervisor && row.cells.iter().any(runs)
}

fn cells(rows: &[InstructionFinding]) -> impl Iterator<Item = (&InstructionFinding, &Cell)> {
    rows.iter().flat_map(|row| row.cells.iter().map(move |cell| (row, cell)))
}

fn equivalence(rows: &[InstructionFinding]) -> Property {
    let dead: Vec<_> = cells(rows).filter(|(_, cell)| cell.ran == Ran::CouldNotRun).collect();
    let is_other =
        |cell: &Cell| !matches!(cell.ran, Ran::CouldNotRun | Ran::Absent) && !cell.as_manual;
    let other: Vec<_> = cells(rows).filter(|(_, cell)| is_other(cell)).collect();
    let all = cells(rows).count();
    let holds = dead.is_empty() && other.is_empty();
    let why = if holds {
        format!("all {all} instructions in their modes and rings did what the manuals say")
    } else {
        format!(
            "of {all} instructions in their modes and rings {} could not run{}, and {} did not do what the manuals say{}",
            dead.len(),
            named(&dead),
            other.len(),
            named(&other)
        )
    };
    Property {
        name: "equivalence".to_owned(),
        asks: "a program runs as it would on the bare machine".to_owned(),
        holds,
        why,
    }
}

/// A few cells are named, so that one is not taken for many.
fn named(cells: &[(&InstructionFinding, &Cell)]) -> String {
    const FEW: usize = 4;
    if cells.is_empty() || cells.len() > FEW {
        return String::new();
    }
    let names = cells.iter().map(|(row, cell)| format!("{} in {}", row.name, cell.context));
    format!(" ({})", names.collect::<Vec<_>>().join(", "))
}

fn resource_control(leaks: &[Leak]) -> Property {
    let why = match leaks {
        [] => "nothing of the host's was seen".to_owned(),
        some => format!("a guest sees or reaches something of the host's in {} ways", some.len()),
    };
    Property {
        name: "resource control".to_owned(),
        asks: "what is the host's stays with the host".to_owned(),
        holds: leaks.is_empty(),
        why,
    }
}

fn efficiency(rows: &[InstructionFinding]) -> Property {
    let nop = rows.iter().find(|row| row.name == "nop");
    let emulated: Vec<_> = nop
        .into_iter()
        .flat_map(|row| &row.cells)
        .filter(|cell| cell.ran != Ran::Direct)
        .map(|cell| cell.context.clone())
        .collect();
    let why = if emulated.is_empty() {
        "an innocuous instruction (NOP) runs directly in every mode and ring".to_owned()
    } else {
        format!("even a NOP does not run directly in {}", emulated.join(", "))
    };
    Property {
        name: "efficiency".to_owned(),
        asks: "innocuous instructions run directly on the processor".to_owned(),
        holds: emulated.is_empty(),
        why,
    }
}

/// Everything of the host's that a guest saw: by instruction, by leaf, by MSR, by kvmclock; the other
/// clocks are instructions and MSRs.
pub fn leaks(
    rows: &[InstructionFinding],
    cpuid: &Cpuid,
    msrs: &[Msr],
    clocks: &[Clock],
) -> Vec<Leak> {
    let mut leaks: Vec<Leak> = rows.iter().flat_map(instruction).collect();
    leaks.extend(cpuid_leaks(rows, cpuid));
    let read = msrs.iter().filter(|msr| msr.whose == Some(Whose::Host));
    leaks.extend(read.map(|msr| Leak {
        by: msr.name.clone(),
        contexts: vec!["long/0".to_owned()],
        what: format!(
            "{}: {}{}",
            msr.value.clone().unwrap_or_default(),
            msr.about,
            if msr.writable == Some(true) { "; the guest can write it, too" } else { "" }
        ),
        why: msr.why.clone(),
    }));
    let is_leak = |clock: &&Clock| clock.name == KVMCLOCK && clock.whose == Some(Whose::Host);
    leaks.extend(clocks.iter().filter(is_leak).map(|clock| Leak {
        by: clock.name.clone(),
        contexts: vec!["long/0".to_owned()],
        what: clock.found.clone(),
        why: "KVM does not count from the start of the VM".to_owned(),
    }));
    leaks
}

/// How CPUID comes to show the host's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    ChangedTable,
    Untrapped,
    Other,
}

const CAUSES: [(Cause, &str); 3] = [
    (Cause::ChangedTable, CHANGED_TABLE),
    (
        Cause::Untrapped,
        "CPUID does not trap into this KVM there: what it was told to show is not asked",
    ),
    (Cause::Other, "KVM did it, and showed the host's bits, of which KVM_GET_CPUID2 does not tell"),
];

/// Of CPUID that KVM answers from a table with bits of the host's.
const CHANGED_TABLE: &str = "KVM changed its table when it was set: KVM_GET_CPUID2 tells the host's bits where it was told others";

/// What CPUID shows of the host's: leaves, and features that were masked. In the modes whose leaves
/// were not all looked at, leaf 1 tells.
fn cpuid_leaks(rows: &[InstructionFinding], cpuid: &Cpuid) -> Vec<Leak> {
    let cells = rows.iter().filter(|row| row.name == "cpuid").flat_map(|row| &row.cells);
    let cells: Vec<&Cell> = cells.collect();
    let causes = cells.iter().filter_map(|cell| Some((*cell, cause(cell, cpuid)?)));
    let causes: Vec<_> = causes.collect();
    let leak = |(cause, why): &(Cause, &str)| {
        let cells = causes.iter().filter(|(_, other)| other == cause).map(|(cell, _)| *cell);
        let contexts: Vec<_> = cells.clone().map(|cell| cell.context.clone()).collect();
        let leaf_1 = || cells.clone().find_map(|cell| cell.seen.as_ref()).map(saw);
        let what = what_cpuid_shows(cpuid, &contexts).or_else(leaf_1)?;
        Some(Leak { by: "cpuid".to_owned(), contexts, what, why: (*why).to_owned() })
    };
    CAUSES.iter().filter_map(leak).collect()
}

/// `None` where nothing of the host's shows.
fn cause(cell: &Cell, cpuid: &Cpuid) -> Option<Cause> {
    let host = |leaf: &&WrongLeaf| leaf.context == cell.context && leaf.whose == Whose::Host;
    let wrong: Vec<_> = cpuid.wrong.iter().filter(host).collect();
    let masked = cpuid.masked.iter().any(|bit| bit.shown_in.contains(&cell.context));
    let seen = cell.seen.as_ref().is_some_and(|seen| seen.whose == Whose::Host);
    if wrong.is_empty() && !masked && !seen {
        return None;
    }
    let changed = wrong.iter().all(|leaf| leaf.changed_by_kvm)
        && cpuid.wrong.iter().any(|leaf| leaf.changed_by_kvm);
    Some(match cell.ran {
        Ran::Direct => Cause::Untrapped,
        _ if changed => Cause::ChangedTable,
        _ => Cause::Other,
    })
}

/// `None` where neither a leaf nor a masked feature does.
fn what_cpuid_shows(cpuid: &Cpuid, contexts: &[String]) -> Option<String> {
    let host = |leaf: &&WrongLeaf| leaf.whose == Whose::Host && contexts.contains(&leaf.context);
    let mut leaves: Vec<&WrongLeaf> = vec![];
    for leaf in cpuid.wrong.iter().filter(host) {
        // The same from another ring counts once.
        match leaves.iter_mut().find(|other| other.leaf == leaf.leaf) {
            Some(other) if other.host_bits < leaf.host_bits => *other = leaf,
            Some(_) => {}
            None => leaves.push(leaf),
        }
    }
    let names: Vec<_> = leaves.iter().map(|leaf| &leaf.leaf[..]).collect();
    let sum = |bits: fn(&WrongLeaf) -> u32| leaves.iter().map(|leaf| bits(leaf)).sum::<u32>();
    let shown = |bit: &&MaskedBit| bit.shown_in.iter().any(|shown| contexts.contains(shown));
    let shown: Vec<_> = cpuid.masked.iter().filter(shown).map(|bit| &bit.name[..]).collect();
    let any = !leaves.is_empty() || !shown.is_empty();
    let what = format!(
        "the host's CPUID in {} leaves ({}): of {} bits that are not as KVM was told {} are the host's; of {} masked features {} show ({})",
        leaves.len(),
        names.join(", "),
        sum(|leaf| leaf.bits),
        sum(|leaf| leaf.host_bits),
        cpuid.masked.len(),
        shown.len(),
        shown.join(", ")
    );
    any.then_some(what)
}

fn saw(seen: &Seen) -> String {
    format!("{}: {} (its own: {})", seen.what, seen.value, seen.own)
}

/// What an instruction shows of the host's, a leak a cause; CPUID is dealt with leaf by leaf.
fn instruction(row: &InstructionFinding) -> Vec<Leak> {
    let mut leaks: Vec<Leak> = vec![];
    for cell in row.cells.iter().filter(|_| row.name != "cpuid") {
        let Some(seen) = cell.seen.as_ref().filter(|seen| seen.whose == Whose::Host) else {
            continue;
        };
        let why = why(cell);
        if let Some(leak) = leaks.iter_mut().find(|leak| leak.why == why) {
            leak.contexts.push(cell.context.clone());
            continue;
        }
        leaks.push(Leak {
            by: row.name.clone(),
            contexts: vec![cell.context.clone()],
            what: saw(seen),
            why,
        });
    }
    leaks
}

/// The counter of KVM's that grows when its emulator gives up.
pub const EMULATION_FAILED: &str = "insn_emulation_fail";

fn is_unknown_to_emulator(cell: &Cell) -> bool {
    let failed = cell.counters.iter().any(|name| name == EMULATION_FAILED);
    failed && !cell.as_manual && cell.exception.as_deref() == Some("#UD")
}

/// Why a cell shows what it shows.
pub fn why(cell: &Cell) -> String {
    let Some(seen) = &cell.seen else {
        return match cell.ran {
            Ran::Direct => {
                "nothing was in its way: the processor executed it as it stands".to_owned()
            }
            Ran::Emulated => "KVM read it and did what it does, in software".to_owned(),
            Ran::TrappedKvm => "the processor stopped and asked KVM, which did it".to_owned(),
            Ran::TrappedUser => {
                "the processor stopped and asked KVM, which asked ringfence".to_owned()
            }
            Ran::Faulted if is_unknown_to_emulator(cell) => {
                "KVM's emulator does not know it, and gives the guest a #UD (its counter insn_emulation_fail grew)".to_owned()
            }
            Ran::Faulted | Ran::Gate => "the guest's own kernel got it".to_owned(),
            Ran::Elsewhere => "nothing stopped it, but it led to no code of the audit's".to_owned(),
            Ran::Landed => match cell.landed_in {
                Some(0) => "the guest's own kernel got it, in ring 0".to_owned(),
                _ => "the guest's kernel got it, but not in ring 0".to_owned(),
            },
            Ran::CouldNotRun => cell.words.clone().unwrap_or_default(),
            Ran::Absent => "its processor does not have it".to_owned(),
        };
    };
    match (seen.whose, cell.ran) {
        (Whose::Host, Ran::Direct) if seen.what == "a hypervisor's answer" => {
            "KVM counted no exit, and yet a hypervisor answered: the one below this host".to_owned()
        }
        (Whose::Host, Ran::Direct) if seen.what == FEATURES => {
            "KVM counted no exit: the processor answered, or the hypervisor below this host".to_owned()
        }
        (Whose::Host, Ran::Direct) => {
            "it runs directly, and the processor holds the host's value: nobody has loaded the guest's".to_owned()
        }
        (Whose::Host, Ran::Emulated | Ran::TrappedKvm) if seen.what == FEATURES => {
            "KVM answered from its table, in which bits of the host's stand that it was told to mask: KVM_GET_CPUID2 tells whether it changed them when they were set".to_owned()
        }
        (Whose::Host, _) => "KVM did it, and showed the host's value".to_owned(),
        (Whose::Constant, Ran::Direct) => {
            "it runs directly, and the processor holds neither the guest's value nor the one that the host shows to programs".to_owned()
        }
        (Whose::Zero, Ran::Direct) => {
            "it runs directly, and the processor holds zero, as it does for the host's programs: nobody has loaded the guest's".to_owned()
        }
        (Whose::Zero, _) => "KVM shows a zero".to_owned(),
        (Whose::Constant, _) => "KVM shows an invented value".to_owned(),
        (Whose::Same, _) => {
            "nothing can be told: there is no other value to compare with".to_owned()
        }
        (Whose::Unknown, _) => {
            "nothing can be told: it is not the guest's, and this host lets no program read its own".to_owned()
        }
        (_, Ran::Direct) => {
            "it runs directly, and the processor holds the guest's own value: hardware keeps a copy for the guest, or KVM has loaded it".to_owned()
        }
        _ => "KVM did it with the guest's own value".to_owned(),
    }
}

impl Report {
    /// Cells that say that something is the host's.
    pub fn host_cells(&self) -> usize {
        let host = |cell: &Cell| cell.seen.as_ref().is_some_and(|seen| seen.whose == Whose::Host);
        cells(&self.instructions).filter(|(_, cell)| host(cell)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(context: &str, ran: Ran, whose: Option<Whose>) -> Cell {
        let seen = whose.map(|whose| Seen {
            what: "CS".to_owned(),
            value: "0x0".to_owned(),
            own: "0x6b".to_owned(),
            host: Some("0x0".to_owned()),
            whose,
        });
        Cell {
            exception: (ran == Ran::Faulted).then(|| "#UD".to_owned()),
            as_manual: ran == Ran::Direct,
            seen,
            ..Cell::new(context, ran)
        }
    }

    fn row(name: &str, cells: Vec<Cell>) -> InstructionFinding {
        let (name, sensitive) = (name.to_owned(), "behaviour".to_owned());
        InstructionFinding { name, privileged: false, sensitive, seventeen: true, cells }
    }

    #[test]
    fn what_acts_on_the_guests_own_state_may_run_untrapped() {
        let own = row("smsw", vec![cell("long/3", Ran::Direct, Some(Whose::Own))]);
        let silent = row("pop", vec![cell("long/3", Ran::Direct, None)]);
        let theory = judge(&[own.clone(), silent.clone()], &[], &[]);
        assert!(!theory.trap_and_emulate && theory.untrapped_with_hardware.is_empty());
        assert_eq!((theory.untrapped.len(), theory.own_seen), (2, 1));
        let zero = row("push", vec![cell("long/3", Ran::Direct, Some(Whose::Zero))]);
        let theory = judge(&[own, silent, zero], &[], &[]);
        assert_eq!(theory.untrapped_with_hardware, ["push"]);
    }

    #[test]
    fn what_cannot_be_told_is_not_counted_as_the_guests_own() {
        let same = row("sgdt", vec![cell("long/3", Ran::Direct, Some(Whose::Same))]);
        let unknown = row("str", vec![cell("long/3", Ran::Direct, Some(Whose::Unknown))]);
        let theory = judge(&[same, unknown], &[], &[]);
        assert_eq!((theory.untrapped.len(), theory.own_seen), (2, 0));
        assert_eq!(theory.untrapped_with_hardware, ["str"]);
    }

    #[test]
    fn one_cell_is_named() {
        let dead = row("sysenter", vec![cell("long/0", Ran::CouldNotRun, None)]);
        let why = equivalence(&[dead]).why;
        assert!(why.contains("1 could not run (sysenter in long/0), and 0 did"), "{why}");
    }

    #[test]
    fn an_emulator_that_gives_up_is_named() {
        let mut faulted = cell("prot/3", Ran::Faulted, None);
        assert!(!why(&faulted).contains("emulator"));
        faulted.counters = vec![EMULATION_FAILED.to_owned()];
        assert!(why(&faulted).contains("does not know it"));
    }

    /// A KVM that only changes its table shows the host's, and is not isolated.
    #[test]
    fn a_masked_feature_that_shows_in_ring_0_alone_is_a_leak() {
        let cpuid = row("cpuid", vec![cell("long/0", Ran::TrappedKvm, Some(Whose::Own))]);
        let masked = MaskedBit { name: "aes".to_owned(), shown_in: vec!["long/0".to_owned()] };
        let found = Cpuid { leaves: 1, wrong: vec![], masked: vec![masked] };
        let leaks = leaks(&[cpuid], &found, &[], &[]);
        assert_eq!(leaks[0].contexts, ["long/0"]);
        assert!(leaks[0].what.contains("(aes)"), "{}", leaks[0].what);
    }

    #[test]
    fn a_leaf_that_shows_the_hosts_in_one_mode_alone_is_told() {
        let cpuid = row("cpuid", vec![cell("real", Ran::Emulated, Some(Whose::Host))]);
        let none = Cpuid { leaves: 1, wrong: vec![], masked: vec![] };
        let leaks = leaks(&[cpuid], &none, &[], &[]);
        assert_eq!((leaks.len(), &leaks[0].what[..]), (1, "CS: 0x0 (its own: 0x6b)"));
    }

    /// One that RDTSC or an MSR shows is a leak of theirs already.
    #[test]
    fn a_kvmclock_of_the_hosts_is_a_leak() {
        let clock = |name: &str, whose| Clock {
            name: name.to_owned(),
            found: String::new(),
            whose: Some(whose),
        };
        let none = Cpuid { leaves: 0, wrong: vec![], masked: vec![] };
        let clocks = [clock("RDTSC in ring 3", Whose::Host), clock(KVMCLOCK, Whose::Host)];
        let found = leaks(&[], &none, &[], &clocks);
        assert_eq!((found.len(), &found[0].by[..]), (1, KVMCLOCK));
        assert!(leaks(&[], &none, &[], &[clock(KVMCLOCK, Whose::Own)]).is_empty());
    }
}
