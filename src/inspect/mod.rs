//! What a guest that stands still can tell: how it died and where, in words and as data.
//!
//! Called by `machine` with vCPU states, guest memory and symbols; asks KVM nothing, runs
//! nothing. [`Autopsy`] is the data, its [`std::fmt::Display`] the page for people.

mod backtrace;
mod cause;
mod delivery;
mod descriptor;
mod disasm;
pub mod doctor;
mod fault;
mod follow;
mod frame;
mod kvm_words;
mod mappings;
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
pub use delivery::{Attempt, Chain, Gate};
pub use disasm::Line;
pub use fault::Fault;
pub use follow::{Target, leaves_to};
pub use kvm_words::{is_end, kvm_words};
pub use mappings::{Mapping, mappings};
pub use symbols::{Place, Symbols};

use crate::kvm::{Events, LocalApic};
use crate::mem::GuestMemory;
use crate::x86::{CpuState, Mode, Regs, Rflags};
use fault::Standing;
use walk::{AddressSpace, Paging, Walk};

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
    /// The last exit before the end: the guest ran on from there.
    LastExit,
    /// A second run of the same guest, stepped up to its end.
    SecondRun,
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
    /// Bits of a physical address.
    pub physical_bits: u32,
    /// What KVM said of its end, in words.
    pub kvm: Vec<String>,
    /// Its local APIC.
    pub local_apic: Option<LocalApic>,
    /// What was on its way into the guest.
    pub events: Events,
    /// Its last exits, one line each, the oldest first.
    pub exits: Vec<String>,
}

/// Everything an autopsy is made from.
pub struct Subject<'a> {
    /// How it ended.
    pub ending: Ending,
    /// Guest memory.
    pub memory: &'a GuestMemory,
    /// Names.
    pub symbols: &'a Symbols<'a>,
    /// Where the states come from.
    pub source: Source,
    /// The same in words, with what is to be said of a second run.
    pub notes: Vec<String>,
    /// The vCPUs.
    pub cpus: Vec<Cpu>,
}

/// A page walk, with what the address is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedWalk {
    /// RIP, RSP, CR2, IDT, ...
    pub what: String,
    /// The walk.
    #[serde(flatten)]
    pub walk: Walk,
}

/// What was found out about one vCPU.
#[derive(Clone, Debug, Serialize)]
pub struct CpuFindings {
    /// Its number.
    pub id: u32,
    /// Is it the one that the guest died on?
    pub died: bool,
    /// The mode that it was in; `None` where that is lost.
    pub mode: Option<Mode>,
    /// Its privilege level.
    pub ring: Option<u8>,
    /// How its addresses are translated.
    pub paging: Option<Paging>,
    /// Its registers.
    pub registers: Registers,
    /// Where RIP is.
    pub place: Option<Place>,
    /// The exceptions that killed it.
    pub faults: Option<Chain>,
    /// The code around RIP.
    pub code: Vec<Line>,
    /// Who called whom.
    pub backtrace: Vec<Frame>,
    /// The page walks.
    pub walks: Vec<NamedWalk>,
    /// Its local APIC.
    pub local_apic: Option<LocalApic>,
    /// What was on its way into the guest.
    pub events: Events,
    /// What KVM said, in words.
    pub kvm: Vec<String>,
    /// Its last exits, one line each, the oldest first.
    pub exits: Vec<String>,
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
    /// Each vCPU.
    pub cpus: Vec<CpuFindings>,
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
        Self { summary, source: subject.source, notes: subject.notes.clone(), cpus }
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
        walks: Vec::new(),
        local_apic: cpu.local_apic.clone(),
        events: cpu.events,
        kvm: cpu.kvm.clone(),
        exits: cpu.exits.clone(),
    };
    let Registers::Whole(state) = &cpu.registers else { return findings };
    let space = AddressSpace::new(subject.memory, state, cpu.physical_bits);
    let at = Standing::new(space, state);
    findings.mode = Some(state.mode());
    findings.ring = Some(state.ring());
    findings.paging = Some(space.paging());
    findings.place = subject.symbols.at(state.linear_rip());
    findings.code = at.code.around(state.regs.rip, BEFORE, AFTER, subject.symbols);
    findings.backtrace = backtrace::of(&at, subject.symbols);
    if cpu.died && subject.ending == Ending::TripleFault {
        findings.faults = cause::faults(&at, cpu);
    }
    findings.walks = walks(&space, state, findings.faults.as_ref());
    findings
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
    let walk = |(what, address)| NamedWalk { what, walk: space.walk(address) };
    addresses.into_iter().map(walk).collect()
}
