//! What an audit found, as data: printed, written as JSON, read back for a comparison. Knows no KVM.

use serde::{Deserialize, Serialize};

pub use super::cell::{Cell, Ran, Seen, Whose};

/// The number of the format; a reader refuses others.
pub const FORMAT: u32 = 1;

/// What there is to say of an audit without KVM's counters ([`Host::counters`]).
pub const NO_COUNTERS: &str =
    "KVM has no counters here: what trapped is inferred from the time it took.";

/// What there is to say of an audit without a look at the host's own registers ([`Host::native`]).
pub const NOT_COMPARED: &str = "This host lets no program look at its own registers: whose it is that a guest saw is not told, but for CPUID, clocks and MSRs.";

/// The JSON schema of a report: what `ringfence help audit-report` prints.
pub const SCHEMA: &str = include_str!("schema.json");

/// All that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// The version of ringfence.
    pub ringfence: String,
    /// Where.
    pub host: Host,
    /// The modes and rings, and how code runs in them.
    pub contexts: Vec<ContextFinding>,
    /// Each instruction.
    pub instructions: Vec<InstructionFinding>,
    /// CPUID.
    pub cpuid: Cpuid,
    /// Model-specific registers.
    pub msrs: Vec<Msr>,
    /// Clocks.
    pub clocks: Vec<Clock>,
    /// What exits cost.
    pub costs: Vec<Cost>,
    /// What helps isolation.
    pub help: Vec<Help>,
    /// Popek and Goldberg.
    pub theory: Theory,
    /// Everything of the host's that a guest saw.
    pub leaks: Vec<Leak>,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// The kernel module behind the device node.
    pub backend: String,
    /// Its kernel.
    pub kernel: String,
    /// Its processor.
    pub processor: String,
    /// Do KVM's own counters tell what it did? Otherwise the time does.
    pub counters: bool,
    /// Could its own values be read, to compare with?
    pub native: bool,
    /// Why there are no reasons of exits; `None` where there are.
    #[serde(default)]
    pub exit_reasons_untold: Option<String>,
}

/// A mode and a ring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextFinding {
    /// Its name.
    pub name: String,
    /// The ring.
    pub ring: u8,
    /// How it was entered.
    pub entered: Entered,
    /// Why it could not be, or not by IRET: KVM's words.
    pub words: Option<String>,
    /// Is its code emulated, instruction by instruction?
    pub emulated: bool,
    /// What a NOP costs there, in cycles of the guest's clock.
    pub nop_cycles: Option<f64>,
}

/// How a mode and a ring were entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entered {
    /// As a kernel does it: it is the ring of the start, or an IRET leads there.
    ByTheGuest,
    /// By KVM_SET_SREGS: the IRET could not run.
    ByRegisters,
    /// Not at all.
    No,
}

/// An instruction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstructionFinding {
    /// Its name.
    pub name: String,
    /// Does it trap in ring 3?
    pub privileged: bool,
    /// Which way it is sensitive.
    pub sensitive: String,
    /// Is it one of Robin and Irvine's seventeen?
    pub seventeen: bool,
    /// In each mode and ring where it exists.
    pub cells: Vec<Cell>,
}

/// What CPUID told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpuid {
    /// Leaves that were compared, in each ring.
    pub leaves: usize,
    /// Leaves in which a guest saw something else than KVM had been told to show.
    pub wrong: Vec<WrongLeaf>,
    /// Bits that were masked.
    pub masked: Vec<MaskedBit>,
}

/// A leaf that is not what KVM was told to show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrongLeaf {
    /// The mode and the ring.
    pub context: String,
    /// Leaf and sub-leaf, in hexadecimal.
    pub leaf: String,
    /// EAX, EBX, ECX, EDX as the guest saw them.
    pub value: String,
    /// As KVM was told.
    pub own: String,
    /// As the host's programs see them.
    pub host: String,
    /// Bits that are not as KVM was told.
    pub bits: u32,
    /// Those of them that are as the host has them.
    pub host_bits: u32,
    /// Has KVM changed its table when it was set, so that KVM_GET_CPUID2 tells what the guest sees?
    pub changed_by_kvm: bool,
    /// So whose they are: the host's where one bit is.
    pub whose: Whose,
}

/// A feature bit that was masked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskedBit {
    /// The feature.
    pub name: String,
    /// The modes and rings in which the guest saw it all the same.
    pub shown_in: Vec<String>,
}

/// A model-specific register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Msr {
    /// Its number, in hexadecimal.
    pub index: String,
    /// Its name.
    pub name: String,
    /// What a guest that could read it would learn.
    pub about: String,
    /// What the guest read; `None`: an exception.
    pub value: Option<String>,
    /// Can the guest write back what it read? `None`: it was not tried.
    pub writable: Option<bool>,
    /// Is it the machine's, so that a guest should not be able to write it?
    pub foreign: bool,
    /// The host's value, where this process may read it.
    pub host: Option<String>,
    /// Whose it is; `None` where there is no value.
    pub whose: Option<Whose>,
    /// Why it counts as that.
    pub why: String,
}

/// The name of the clock that is neither an instruction's nor an MSR's.
pub const KVMCLOCK: &str = "kvmclock";

/// A clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clock {
    /// Its name.
    pub name: String,
    /// What the guest finds.
    pub found: String,
    /// Whose it is.
    pub whose: Option<Whose>,
}

/// What something costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// What.
    pub name: String,
    /// The mode and the ring.
    pub context: String,
    /// Where it is dealt with.
    pub ran: Ran,
    /// The reasons of its exits, as the kernel's trace point names them.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Cycles of the guest's clock for one execution, less the code around it: the median of
    /// measurements that take turns with those of that code.
    pub cycles: f64,
    /// The least that was measured with it, less the least without it.
    pub least: f64,
    /// Half of the measurements lie between these.
    pub spread: [f64; 2],
}

/// A help of the hardware's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Help {
    /// Its name.
    pub name: String,
    /// Does the host have it? `None`: that cannot be told from here.
    pub host: Option<bool>,
    /// Does the guest?
    pub guest: Option<bool>,
    /// What was found when it was used.
    pub found: String,
}

/// What the theory says of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Theory {
    /// Sensitive instructions that a guest in ring 3 executes without its kernel in ring 0 being
    /// told: with one of these trap and emulate does not hold.
    pub untrapped: Vec<String>,
    /// Those that are left when UMIP, TSD and CPUID faulting are on, where the guest has them.
    pub untrapped_with_help: Vec<String>,
    /// Those that do not act on the guest's own state alone, whatever helps: what they show is not
    /// the guest's own, or they do not do what the manuals say.
    pub untrapped_with_hardware: Vec<String>,
    /// How many of the first list showed a value, and always the guest's own.
    pub own_seen: usize,
    /// Does trap and emulate hold without a hypervisor's help from the hardware?
    pub trap_and_emulate: bool,
    /// Equivalence, resource control, efficiency: of this host's KVM.
    pub properties: Vec<Property>,
}

/// One of Popek and Goldberg's properties of a virtual machine monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Property {
    /// Its name.
    pub name: String,
    /// What it asks for.
    pub asks: String,
    /// Does it hold here?
    pub holds: bool,
    /// Why, or why not.
    pub why: String,
}

/// Something of the host's that a guest saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leak {
    /// By what.
    pub by: String,
    /// Where.
    pub contexts: Vec<String>,
    /// What.
    pub what: String,
    /// Why it can be.
    pub why: String,
}

impl Theory {
    /// What of the untrapped ones becomes where hardware keeps registers for a guest (VT-x,
    /// AMD-V) and walks its page tables (EPT, NPT), in a sentence.
    pub fn with_hardware(&self) -> String {
        let (all, astray) = (self.untrapped.len(), self.untrapped_with_hardware.len());
        if astray == 0 {
            format!(
                "with the hardware's help (VT-x, AMD-V, EPT, NPT) it holds: all {all} act on the guest's own state ({} by the value that they showed, the others by doing what the manuals say), so that nobody need see them",
                self.own_seen
            )
        } else {
            format!(
                "nor with what hardware helps this KVM: {} of the {all} act on the guest's own state and may run unseen; of these {astray} what shows is not the guest's own, or not what the manuals say: {}",
                all - astray,
                self.untrapped_with_hardware.join(", ")
            )
        }
    }
}

/// Yes, no, or not known: in a word.
pub fn answer(has: Option<bool>) -> &'static str {
    match has {
        Some(true) => "yes",
        Some(false) => "no",
        None => "?",
    }
}

impl ContextFinding {
    /// How its code runs.
    pub fn how(&self) -> &'static str {
        match (self.entered, self.emulated) {
            (Entered::No, _) => "cannot be entered",
            (_, true) => "emulated, instruction by instruction",
            (_, false) => "runs on the processor itself",
        }
    }
}

impl InstructionFinding {
    /// Its classes in the theory.
    pub fn classes(&self) -> String {
        let privileged = if self.privileged { "privileged" } else { "unprivileged" };
        match &self.sensitive[..] {
            "innocuous" => format!("{privileged}, innocuous"),
            sensitive => format!("{privileged}, {sensitive}-sensitive"),
        }
    }

    /// Its class in a letter or two: behaviour-sensitive, control-sensitive.
    pub fn class(&self) -> &'static str {
        match &self.sensitive[..] {
            "behaviour" => "b",
            "control" => "c",
            "behaviour and control" => "bc",
            _ => "",
        }
    }
}

impl Cost {
    /// Where it is dealt with, and by which exits.
    pub fn words(&self) -> String {
        let words = self.ran.words();
        if self.reasons.is_empty() {
            return words.to_owned();
        }
        format!("{words} ({})", self.reasons.join(", "))
    }
}

impl Report {
    /// Is there nothing of the host's that a guest sees?
    pub fn is_isolated(&self) -> bool {
        self.leaks.is_empty()
    }

    /// The MSRs of which it cannot be told whose they are.
    pub fn unknown_msrs(&self) -> Vec<&str> {
        let unknown = self.msrs.iter().filter(|msr| msr.whose == Some(Whose::Unknown));
        unknown.map(|msr| &msr.name[..]).collect()
    }

    /// What an instruction showed of which it cannot be told whose it is.
    pub fn unknown_cells(&self) -> Vec<String> {
        let is_unknown =
            |cell: &&Cell| cell.seen.as_ref().is_some_and(|seen| seen.whose == Whose::Unknown);
        let of = |row: &InstructionFinding| -> Vec<_> {
            let cells = row.cells.iter().filter(is_unknown);
            cells.map(|cell| format!("{} in {}", row.name, cell.context)).collect()
        };
        self.instructions.iter().flat_map(of).collect()
    }

    /// Reads a report from JSON.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        match value["format"].as_u64() {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => return Err(format!("its format is {format}, not {FORMAT}")),
            None => return Err("it is no report of an audit".to_owned()),
        }
        let report: Self = serde_json::from_value(value).map_err(|e| e.to_string())?;
        let is_empty = report.contexts.is_empty() || report.instructions.is_empty();
        if is_empty { Err("it tells of no instruction".to_owned()) } else { Ok(report) }
    }

    /// The cell of an instruction.
    pub fn cell(&self, instruction: &str, context: &str) -> Option<&Cell> {
        let row = self.instructions.iter().find(|row| row.name == instruction)?;
        row.cells.iter().find(|cell| cell.context == context)
    }
}
