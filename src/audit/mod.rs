//! The audit of an isolation: what happens to every sensitive and every privileged instruction in
//! each mode and ring, and whether what a guest sees is its own or the host's.
//!
//! Called by `cli`; speaks to `kvm` itself, because a program under test has a VM of its own and
//! no device, and may kill it. Knows no command line.
//!
//! `table` has a row an instruction, `context` the modes and rings, `ground` what lies in the
//! guest's memory, `program` the code around an instruction; `lab` runs it, `measure` counts, `judge`
//! says what happened, `reasons` which exits those were, `sight` whose value was seen. What an audit
//! found is plain data, in `report`.

mod cell;
mod clocks;
mod compare;
pub mod context;
mod costs;
mod explain;
mod facts;
mod ground;
mod help;
mod honesty;
mod html;
pub mod instruction;
mod judge;
mod lab;
mod measure;
mod msrs;
mod native;
mod program;
mod reasons;
pub mod report;
mod sight;
pub mod table;
mod theory;

use std::io;
use std::path::Path;

use crate::kvm::Backend;
pub use compare::{Comparison, Difference, compare};
pub use explain::explain;
pub use html::page;
use instruction::Instruction;
use judge::Court;
use lab::Lab;
use native::Native;
use report::{ContextFinding, FORMAT, Host, InstructionFinding, Report};
use table::INSTRUCTIONS;

/// Why there is no audit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] crate::kvm::Error),
    /// The guest's memory could not be had.
    #[error(transparent)]
    Memory(#[from] crate::mem::Error),
    /// The guest's memory does not take what is written to it.
    #[error("cannot write to the guest's memory")]
    Access(#[from] crate::mem::GuestMemoryError),
    /// No timer.
    #[error("the host refused a timer")]
    Timer(#[source] io::Error),
}

/// Audits the KVM behind a device node. Takes seconds, and minutes where the processor itself is
/// emulated; `progress` is told what is tried.
/// The calling thread stays on one processor from then on.
pub fn audit(kvm: &Path, mut progress: impl FnMut(&str)) -> Result<Report, Error> {
    let cpu = native::pin();
    let native = Native::look();
    let mut lab = Lab::open(kvm, honesty::change)?;
    let leaves = lab.guest_cpuid();
    let counters = lab.has_counters()?;
    let mut court = Court::new(&mut lab, native.as_ref(), &leaves);
    let (mut contexts, mut instructions) = court.try_all(INSTRUCTIONS, &mut progress)?;
    progress("costs");
    let mut costs = costs::examine(&mut court, &instructions)?;
    costs::agree(&costs, &mut contexts, &mut instructions);
    progress("exits");
    let found = (&mut instructions[..], &mut costs[..]);
    let untold = reasons::examine(&mut court, INSTRUCTIONS, &contexts, found)?;
    progress("CPUID");
    let cpuid = honesty::examine(&mut lab, &leaves)?;
    progress("MSRs");
    let msrs = msrs::examine(&mut lab, cpu)?;
    let leaves = lab.kept_cpuid()?;
    let clocks = clocks::examine(&mut lab, &instructions, &msrs, &leaves)?;
    progress("helps");
    let (help, helped) = help::examine(&mut lab, &leaves)?;
    let leaks = theory::leaks(&instructions, &cpuid, &msrs, &clocks);
    let theory = theory::judge(&instructions, &helped, &leaks);
    Ok(Report {
        format: FORMAT,
        ringfence: env!("CARGO_PKG_VERSION").to_owned(),
        host: host(counters, native.is_some(), untold),
        contexts,
        instructions,
        cpuid,
        msrs,
        clocks,
        costs,
        help,
        theory,
        leaks,
    })
}

/// What was found of one instruction.
pub struct One {
    /// Where.
    pub host: Host,
    /// The modes and rings.
    pub contexts: Vec<ContextFinding>,
    /// The instruction.
    pub finding: InstructionFinding,
}

/// Tries one instruction in every mode and ring.
pub fn audit_one(kvm: &Path, row: &Instruction) -> Result<One, Error> {
    native::pin();
    let native = Native::look();
    let mut lab = Lab::open(kvm, honesty::change)?;
    let leaves = lab.guest_cpuid();
    let counters = lab.has_counters()?;
    let mut court = Court::new(&mut lab, native.as_ref(), &leaves);
    let row = std::slice::from_ref(row);
    let (contexts, mut findings) = court.try_all(row, |_| {})?;
    let untold = reasons::examine(&mut court, row, &contexts, (&mut findings, &mut []))?;
    let host = host(counters, native.is_some(), untold);
    Ok(One { host, contexts, finding: findings.remove(0) })
}

fn host(counters: bool, native: bool, untold: Option<String>) -> Host {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Host {
        backend: Backend::detect().name().to_owned(),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        processor: model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned()),
        counters,
        native,
        exit_reasons_untold: untold,
    }
}
