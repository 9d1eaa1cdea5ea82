//! What a guest that stands still can tell: how it died and where, in words and as data.
//!
//! Called by `machine` with vCPU states, guest memory and symbols; asks KVM nothing, runs
//! nothing. [`Autopsy`] is the data, its [`std::fmt::Display`] the page for people.

mod backtrace;
mod blocked;
mod cause;
pub mod coverage;
mod debug;
mod delivery;
mod descriptor;
mod disasm;
pub mod doctor;
mod fault;
mod follow;
mod frame;
mod functions;
mod interrupted;
mod kvm_words;
mod mappings;
mod mode;
mod operands;
mod page;
mod special;
pub mod symbols;
#[cfg(test)]
mod tests;
mod unwind;
pub mod walk;
pub mod watch;

use serde::Serialize;

pub use backtrace::{Found, Frame};
pub use blocked::{Touch, guarded_access};
pub use delivery::{Attempt, Chain, Gate};
pub use disasm::Line;
pub use fault::Fault;
pub use follow::{Target, leaves_to};
pub use functions::{Functions, offset_of_image};
pub use kvm_words::{KvmExit, is_end, kvm_exit, kvm_words};
pub use mappings::{Mapping, mappings};
pub use mode::CodeMode;
pub use symbols::{Place, Symbols};

use crate::kvm::{Backend, DebugRegisters, Events, Guard, Guarded, LocalApic};
use crate::mem::GuestMemory;
use crate::vcpu::Record;
use crate::x86::{CpuState, Regs, Rflags};
use fault::Standing;
use walk::{AddressSpace, End, Paging, Walk};

/// How a guest ended, as its autopsy has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Triple fault.
    TripleFault,
    /// KVM could not run an instruction.
    Unrunnable,
    /// The hardware or KVM refused its state.
    InvalidEntry,
    /// It reported a panic; what else is known.
    Panic(String),
    /// All its processors halted for ever.
    Halted,
    /// It broke a rule of strict mode.
    Strict(String),
    /// It was still running after this time, in words.
    TimedOut(String),
}

/// What is known of a vCPU's registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[allow(clippy::large_enum_variant)] // one a vCPU, once a machine
pub enum Registers {
    /// All.
    Whole(CpuState),
    /// The general ones alone.
    General {
        /// Their values.
        regs: Regs,
        /// The flags.
        rflags: Rflags,
    },
}

impl Registers {
    /// The general registers.
    pub fn regs(&self) -> &Regs {
        match self {
            Self::Whole(state) => &state.regs,
            Self::General { regs, .. } => regs,
        }
    }
}

/// Where a state comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The vCPU still had it at the end.
    End,
    /// The guest's start: it had not run an instruction.
    BeforeStart,
    /// The guest's start: it had no exit before the end.
    Start,
    /// The last exit before the end: the guest ran on from there.
    LastExit,
    /// A second run of the same guest, stepped up to its end.
    SecondRun,
    /// A second run that went another way: its end may not be the guest's.
    OtherWay,
}

/// A vCPU that is looked at.
#[derive(Clone, Debug)]
pub struct Cpu {
    /// Its number.
    pub id: u32,
    /// Is it the one that the guest died on?
    pub died: bool,
    /// Its registers.
    pub registers: Registers,
    /// RIP of the instruction that it ended by, where it stands behind that one.
    pub instruction: Option<u64>,
    /// What KVM said of its end, in words.
    pub kvm: Vec<String>,
    /// The same as data.
    pub kvm_exit: Option<KvmExit>,
    /// Its local APIC.
    pub local_apic: Option<LocalApic>,
    /// The vectors of the interrupts that the 8259s hold, the likeliest last.
    pub pic: Vec<u8>,
    /// What was on its way into the guest.
    pub events: Events,
    /// What it watched for itself.
    pub debug_registers: DebugRegisters,
    /// Its last exits, the oldest first.
    pub exits: Vec<Record>,
}

/// Everything an autopsy is made from.
pub struct Subject<'a> {
    /// How it ended.
    pub ending: Ending,
    /// On which KVM.
    pub backend: Backend,
    /// Guest memory.
    pub memory: &'a GuestMemory,
    /// Names.
    pub symbols: &'a Symbols<'a>,
    /// Where the states come from.
    pub source: Source,
    /// The same in words, with what is to be said of a second run.
    pub notes: Vec<String>,
    /// The vCPUs, the one that it died on first.
    pub cpus: Vec<Cpu>,
    /// Those that no other has started.
    pub never_started: Vec<u32>,
    /// The parts of memory that strict mode guards.
    pub guarded: &'a [Guarded],
}

/// A page walk, with what the address is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedWalk {
    /// RIP, RSP, CR2, IDT, ...
    pub what: String,
    /// The walk.
    #[serde(flatten)]
    pub walk: Walk,
    /// How strict mode guards that address, or a table on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guarded: Option<&'static str>,
}

/// What was found out about one vCPU.
#[derive(Clone, Debug, Serialize)]
pub struct CpuFindings {
    /// Its number.
    pub id: u32,
    /// Is it the one that the guest died on?
    pub died: bool,
    /// The mode that it was in; `None` where that is lost.
    pub mode: Option<CodeMode>,
    /// Its privilege level.
    pub ring: Option<u8>,
    /// How its addresses are translated.
    pub paging: Option<Paging>,
    /// Its registers.
    pub registers: Registers,
    /// Where it is: at the instruction that it ended by.
    pub place: Option<Place>,
    /// The exceptions that killed it.
    pub faults: Option<Chain>,
    /// The code around that instruction; where that cannot be read, around its caller's next.
    pub code: Vec<Line>,
    /// Who called whom.
    pub backtrace: Vec<Frame>,
    /// Are there more frames than those?
    pub backtrace_cut: bool,
    /// The page walks.
    pub walks: Vec<NamedWalk>,
    /// Its local APIC.
    pub local_apic: Option<LocalApic>,
    /// What was on its way into the guest.
    pub events: Events,
    /// What KVM said, in words.
    pub kvm: Vec<String>,
    /// The same as data.
    pub kvm_exit: Option<KvmExit>,
    /// Its last exits, the oldest first.
    pub exits: Vec<Record>,
}

/// An autopsy: why the guest died.
#[derive(Clone, Debug, Serialize)]
pub struct Autopsy {
    /// What killed it and where, in one line.
    pub summary: String,
    /// Where the registers come from.
    pub source: Source,
    /// What is to be said of that.
    pub notes: Vec<String>,
    /// Each vCPU, the one that it died on first.
    pub cpus: Vec<CpuFindings>,
    /// Those that no other has started.
    pub never_started: Vec<u32>,
}

/// Instructions shown before and after the one at RIP: ten in all.
const BEFORE: usize = 4;
const AFTER: usize = 5;

impl Autopsy {
    /// Looks at everything.
    pub fn perform(subject: &Subject<'_>) -> Self {
        let cpus: Vec<_> = subject.cpus.iter().map(|cpu| findings(subject, cpu)).collect();
        let chosen = cpus.iter().find(|cpu| cpu.died).or(cpus.first());
        let summary = match chosen {
            Some(cpu) => cause::summary(subject, cpu),
            None => cause::without_state(&subject.ending),
        };
        let (source, mut notes) = (subject.source, subject.notes.clone());
        if subject.ending == Ending::TripleFault {
            notes.extend(chosen.into_iter().flat_map(|cpu| &cpu.walks).filter_map(guarded_words));
        }
        Self { summary, source, notes, cpus, never_started: subject.never_started.clone() }
    }
}

impl CpuFindings {
    /// An instruction pointer as its mode writes it: by segment and offset where a linear
    /// address is more than the offset.
    fn address(&self, rip: u64) -> String {
        match (&self.registers, self.mode) {
            (Registers::Whole(it), Some(CodeMode::Real | CodeMode::Virtual8086)) => {
                format!("{:04x}:{rip:04x}", it.cs.selector)
            }
            _ => format!("{rip:#x}"),
        }
    }
}

fn findings(subject: &Subject<'_>, cpu: &Cpu) -> CpuFindings {
    let rip = cpu.registers.regs().rip;
    let mut findings = CpuFindings {
        id: cpu.id,
        died: cpu.died,
        mode: None,
        ring: None,
        paging: None,
        registers: cpu.registers.clone(),
        place: subject.symbols.at(rip),
        faults: None,
        code: Vec::new(),
        backtrace: Vec::new(),
        backtrace_cut: false,
        walks: Vec::new(),
        local_apic: cpu.local_apic.clone(),
        events: cpu.events,
        kvm: cpu.kvm.clone(),
        kvm_exit: cpu.kvm_exit.clone(),
        exits: cpu.exits.clone(),
    };
    let Registers::Whole(state) = &cpu.registers else { return findings };
    let space = AddressSpace::new(subject.memory, state);
    let mut then = state.clone();
    then.regs.rip = cpu.instruction.unwrap_or(rip);
    let at = Standing::new(space, &then);
    findings.mode = Some(CodeMode::of(state));
    findings.ring = Some(state.ring());
    findings.paging = Some(space.paging());
    findings.place = subject.symbols.at(then.linear_rip());
    findings.code = at.code.around(then.regs.rip, BEFORE, AFTER, subject.symbols);
    (findings.backtrace, findings.backtrace_cut) = backtrace::of(&at, subject.symbols);
    let here = findings.code.iter().any(|line| line.here);
    if let (false, Some(caller)) = (here, findings.backtrace.get(1)) {
        let lines = at.code.around(caller.rip, BEFORE, AFTER, subject.symbols);
        findings.code = lines.into_iter().map(|line| Line { here: false, ..line }).collect();
    }
    if cpu.died && subject.ending == Ending::TripleFault {
        findings.faults = cause::faults(&at, cpu);
    }
    findings.walks = walks(&space, state, findings.faults.as_ref());
    for it in &mut findings.walks {
        it.guarded = guard_on(&it.walk, subject.guarded);
    }
    findings
}

const TABLE: &str = "a table on the way is guarded by --strict";
const READ_ONLY: &str = "read-only by --strict=text";
const HOLE: &str = "no memory there by --strict=null";

/// What strict mode guards on the way of a walk: the tables, which the processor writes, or the
/// page.
fn guard_on(walk: &Walk, guarded: &[Guarded]) -> Option<&'static str> {
    let by = |address: u64| {
        let holds = |it: &&Guarded| (it.range.start..it.range.end).contains(&address);
        guarded.iter().find(holds).map(|it| it.guard)
    };
    match (walk.levels.iter().find_map(|level| by(level.at)), &walk.end) {
        (Some(_), _) => Some(TABLE),
        (None, End::Page { physical, .. }) => by(*physical).map(|guard| match guard {
            Guard::ReadOnly => READ_ONLY,
            Guard::Hole => HOLE,
        }),
        (None, _) => None,
    }
}

/// What a guard may have to do with a triple fault: the processor writes to the stack, reads the
/// tables, and marks pages as accessed.
fn guarded_words(it: &NamedWalk) -> Option<String> {
    let guarded = it.guarded?;
    let used = match guarded {
        TABLE => it.what == "RIP" || it.what.starts_with("stack for"),
        READ_ONLY => it.what.starts_with("stack for"),
        _ => it.what.starts_with("stack for") || it.what.starts_with("IDT entry"),
    };
    used.then(|| {
        let (what, at) = (&it.what, it.walk.linear);
        format!("{what} at {at:#x}: {guarded}, which takes no access of the processor's own and may have made this a triple fault")
    })
}

/// The addresses that matter: those that the processor itself used.
fn walks(space: &AddressSpace<'_>, cpu: &CpuState, faults: Option<&Chain>) -> Vec<NamedWalk> {
    let mut addresses =
        vec![("RIP".to_owned(), cpu.linear_rip()), ("RSP".to_owned(), cpu.linear_rsp())];
    let mut add = |what: String, address: u64| {
        if addresses.iter().all(|(_, other)| *other != address) {
            addresses.push((what, address));
        }
    };
    if let Some(address) = faults.and_then(|it| it.attempts.first()).and_then(|it| it.event.address)
    {
        add("fault".to_owned(), address);
    }
    if cpu.cr2 != 0 {
        add("CR2".to_owned(), cpu.cr2);
    }
    add("IDT".to_owned(), cpu.idt.base);
    for attempt in faults.iter().flat_map(|it| &it.attempts) {
        let n = attempt.event.vector;
        if let Some(gate) = &attempt.gate {
            add(format!("IDT entry {n}"), gate.at);
        }
        if let Some(stack) = attempt.stack {
            add(format!("stack for vector {n}"), stack.wrapping_sub(8));
        }
    }
    add("GDT".to_owned(), cpu.gdt.base);
    if cpu.tr.present && cpu.tr.selector != 0 {
        add("TSS".to_owned(), cpu.tr.base);
    }
    let walk = |(what, address)| NamedWalk { what, walk: space.walk(address), guarded: None };
    addresses.into_iter().map(walk).collect()
}
