//! Which exits an instruction makes, in the kernel's own words: its trace point `kvm:kvm_exit` is
//! switched on for this thread alone, after everything is timed. Called by the audit; needs tracefs,
//! which is root's; a KVM that does not use the trace point has no reasons to tell.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::context::{CONTEXTS, Context, LONG_0};
use super::instruction::Instruction;
use super::judge::Court;
use super::program::Plan;
use super::report::{Cell, ContextFinding, Cost, Entered, InstructionFinding, Ran};
use super::{Error, costs};
use crate::irq::Irqchip;

/// Where tracefs is mounted (Linux, Documentation/trace/ftrace.rst).
const TRACEFS: &[&str] = &["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// What instances of ours are called, before the process's number.
const NAME: &str = "ringfence-";
/// Exits that are the host's own, whatever the guest does: AMD-V's name, VT-x's.
const HOSTS: [&str; 2] = ["interrupt", "EXTERNAL_INTERRUPT"];
/// KiB for each processor; one run makes some dozens of exits.
const BUFFER: &str = "256";

/// An instance of the kernel's tracing that nobody else reads.
pub struct Trace {
    instance: PathBuf,
    pipe: File,
}

impl Trace {
    /// One for the calling thread; why there is none, with what to do.
    pub fn open() -> Result<Self, String> {
        let tracefs = TRACEFS.iter().map(Path::new).find(|path| path.join("instances").exists());
        let tracefs = tracefs.ok_or(
            "no tracefs that can be read: as root, mount -t tracefs tracefs /sys/kernel/tracing",
        )?;
        remove_left_behind(&tracefs.join("instances"));
        let instance = tracefs.join("instances").join(format!("{NAME}{}", std::process::id()));
        let failed = |error: io::Error| format!("{} cannot be used: {error}", tracefs.display());
        fs::create_dir(&instance).map_err(failed)?;
        Self::set_up(instance.clone()).map_err(|error| {
            let _ = fs::remove_dir(&instance);
            failed(error)
        })
    }

    fn set_up(instance: PathBuf) -> io::Result<Self> {
        let thread = fs::read_link("/proc/thread-self")?;
        let thread = thread.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        fs::write(instance.join("buffer_size_kb"), BUFFER)?;
        fs::write(instance.join("set_event_pid"), thread)?;
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let pipe = options.open(instance.join("trace_pipe"))?;
        fs::write(instance.join("events/kvm/kvm_exit/enable"), "1")?;
        Ok(Self { instance, pipe })
    }

    /// The exits since the last call: RIP and reason.
    fn exits(&mut self) -> Vec<(u64, String)> {
        let mut text = vec![];
        // It ends with EAGAIN, and what came before it has been kept.
        let _ = self.pipe.read_to_end(&mut text);
        String::from_utf8_lossy(&text).lines().filter_map(parse).collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::write(self.instance.join("events/kvm/kvm_exit/enable"), "0");
        if let Ok(nothing) = File::open("/dev/null") {
            self.pipe = nothing; // an instance that is open cannot be removed
        }
        let _ = fs::remove_dir(&self.instance);
    }
}

/// Instances of processes that were killed.
fn remove_left_behind(instances: &Path) {
    for entry in fs::read_dir(instances).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(NAME));
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// `... kvm_exit: vcpu 0 reason CPUID rip 0x2010 info1 ...`, as Linux 5.10 and later print it.
fn parse(line: &str) -> Option<(u64, String)> {
    let (_, event) = line.split_once(" kvm_exit: ")?;
    let (_, rest) = event.split_once("reason ")?;
    let (reason, rest) = rest.split_once(" rip 0x")?;
    let rip = rest.split(' ').next()?;
    Some((u64::from_str_radix(rip, 16).ok()?, reason.trim().to_owned()))
}

/// Names the exits of everything that made some; why it cannot, if it cannot.
pub fn examine(
    court: &mut Court<'_>,
    rows: &[Instruction],
    contexts: &[ContextFinding],
    (found, costs): (&mut [InstructionFinding], &mut [Cost]),
) -> Result<Option<String>, Error> {
    let mut trace = match Trace::open() {
        Ok(trace) => trace,
        Err(why) => return Ok(Some(why)),
    };
    court.lab.run(&Plan { bytes: &[0x0F, 0xA2], ..Plan::empty(LONG_0) })?; // CPUID
    if trace.exits().is_empty() {
        return Ok(Some("this KVM does not use the trace point kvm:kvm_exit".to_owned()));
    }
    for (row, finding) in rows.iter().zip(found.iter_mut()) {
        for cell in finding.cells.iter_mut().filter(|cell| has_exits(cell)) {
            let context = CONTEXTS.iter().find(|context| context.name == cell.context);
            if let Some(plan) = context.and_then(|context| Plan::of(row, *context)) {
                let plan = Plan { there: is_there(contexts, plan.context), ..plan };
                // What memory costs the first time is not the instruction's.
                court.lab.run(&plan)?;
                cell.reasons = reasons(court, &mut trace, &plan)?;
                if row.once && cell.reasons.is_empty() && cell.ran == Ran::TrappedKvm {
                    // What was counted of its few runs was another's, an interrupt of the host's.
                    (cell.ran, cell.exits) = (Ran::Direct, Some(0.0));
                }
            }
        }
    }
    for cost in costs {
        cost.reasons = match (cell(found, cost), costs::extra(&cost.name)) {
            (Some(cell), _) => cell.reasons.clone(),
            (None, Some((bytes, irqchip))) => {
                court.lab.set_irqchip(irqchip);
                court.lab.run(&Plan::empty(LONG_0))?;
                reasons(court, &mut trace, &Plan { bytes, ..Plan::empty(LONG_0) })?
            }
            (None, None) => vec![],
        };
    }
    court.lab.set_irqchip(Irqchip::None);
    Ok(None)
}

fn cell<'f>(found: &'f [InstructionFinding], cost: &Cost) -> Option<&'f Cell> {
    let row = found.iter().find(|row| row.name == cost.name)?;
    row.cells.iter().find(|cell| cell.context == cost.context)
}

fn has_exits(cell: &Cell) -> bool {
    let counted = cell.exits.is_some_and(|exits| exits >= 0.5);
    counted || matches!(cell.ran, Ran::TrappedKvm | Ran::TrappedUser)
}

fn is_there(contexts: &[ContextFinding], context: Context) -> bool {
    let finding = contexts.iter().find(|finding| finding.name == context.name);
    finding.is_some_and(|finding| finding.entered == Entered::ByRegisters)
}

/// The exits that are the instruction's own: those at its address, each reason once.
fn reasons(
    court: &mut Court<'_>,
    trace: &mut Trace,
    plan: &Plan<'_>,
) -> Result<Vec<String>, Error> {
    trace.exits();
    court.lab.run(plan)?;
    let at = plan.assemble().at;
    let mut reasons = vec![];
    for (rip, reason) in trace.exits() {
        if rip == at && !HOSTS.contains(&&reason[..]) && !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    Ok(reasons)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_read_from_the_kernels_text() {
        let vmx = "  vcpu-7 [001] d..1. 81.5: kvm_exit: vcpu 0 reason CPUID rip 0x2010 info1 0x0 info2 0x0";
        assert_eq!(parse(vmx), Some((0x2010, "CPUID".to_owned())));
        let svm = "  vcpu-7 [001] d..1. 81.5: kvm_exit: vcpu 0 reason UD excp rip 0x7c05 info1 0x0";
        assert_eq!(parse(svm), Some((0x7C05, "UD excp".to_owned())));
        let old = "  vcpu-7 [001] d..1. 81.5: kvm_exit: reason EXIT_MSR rip 0xfff0 info 0 0";
        assert_eq!(parse(old), Some((0xFFF0, "EXIT_MSR".to_owned())));
        assert_eq!(parse("CPU:1 [LOST 12 EVENTS]"), None);
    }
}
