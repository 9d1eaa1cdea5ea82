//! The second run of a guest that died in a triple fault on AMD-V, where KVM puts the
//! processor through INIT and its registers are lost: the same image, the same input, no
//! output, up to the last exit that the first run had, then instruction by instruction.

use std::time::Duration;

use super::build::{console, incarnate};
use super::input::Pump;
use super::{Error, Input, Machine, Output, chain};
use crate::inspect::walk::{AddressSpace, End};
use crate::inspect::{Cpu, Registers, Target, leaves_to};
use crate::kvm::{self, Vcpu};
use crate::mem::{Bytes, GuestAddress, GuestMemory, PAGE_SIZE};
use crate::vcpu::{Companion, Counts, OUT, RunLoop, Stepped, run_to_exit, step_to_end};
use crate::verdict::Verdict;
use crate::x86::CpuState;

const INT3: u8 = 0xCC;

/// What a second run may cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) time: Duration,
    pub(super) steps: u64,
}

/// What it brought.
pub(super) struct Second {
    /// The state before the guest's last instruction; `None` where the guest did not get there.
    pub(super) state: Option<CpuState>,
    /// Its memory.
    pub(super) memory: GuestMemory,
    /// What there is to say of it.
    pub(super) notes: Vec<String>,
}

/// Runs the guest again. `last` holds the registers of the first run's last exit.
pub(super) fn second_run(first: &Machine, last: &Cpu, limits: Limits) -> Result<Second, Error> {
    let control = first.control.for_second_run(limits.time);
    let console = console(Output::Captured, &control);
    let pump = Pump::new(Input::Bytes(first.pump.taken()), control.clone());
    let (_, mut again) = incarnate(&first.config, &first.files, &control, &console, &pump)?;
    let mut second = Second { state: None, memory: again.memory.clone(), notes: Vec::new() };
    let Some(it) = again.loops.first_mut() else { return Ok(second) };
    let exits = exits(&first.counts).saturating_sub(1); // the last was the shutdown
    let (counts, verdict) = run_to_exit(it, &control, exits);
    if let Some(verdict) = verdict {
        second.notes.push(format!(
            "a second run of the guest went another way: it came to an end of its own before the first run's last exit ({verdict})"
        ));
        pump.end();
        return Ok(second);
    }
    if exits > 0 {
        compare(first, last, it, &counts, &mut second.notes);
    }
    step(it, last, limits, &mut second)?;
    pump.end();
    Ok(second)
}

/// Exits that are the guest's own doing.
fn exits(counts: &Counts) -> u64 {
    let own = counts.exits().filter(|(name, _)| *name != "interrupted");
    own.map(|(_, count)| count).sum()
}

/// Did it come to the same exit in the same way?
fn compare(first: &Machine, last: &Cpu, it: &RunLoop, counts: &Counts, notes: &mut Vec<String>) {
    let kinds = |counts: &Counts| {
        let own = |(name, _): &(&str, u64)| !matches!(*name, "interrupted" | "shutdown");
        counts.exits().filter(own).collect::<Vec<_>>()
    };
    let (before, now) = (kinds(&first.counts), kinds(counts));
    if before != now {
        notes.push(format!(
            "the second run went another way: its exits were {now:?}, the first run's {before:?}"
        ));
    }
    let (regs, rflags) = it.vcpu.previous_registers();
    let Registers::General { regs: then, rflags: flags } = &last.registers else { return };
    if regs.rip != then.rip {
        let (then, now) = (then.rip, regs.rip);
        notes.push(format!(
            "the second run went another way: its last exit before the end was at {now:#x}, the first run's at {then:#x}"
        ));
    } else if (regs, rflags) != (*then, *flags) {
        notes.push(
            "the second run's last exit was at the same place, with other values in some registers"
                .to_owned(),
        );
    }
}

/// Keeps the state before the instruction that runs.
struct Witness<'m> {
    memory: &'m GuestMemory,
    physical_bits: u32,
    state: Option<CpuState>,
    steps: u64,
    /// Where a breakpoint stands (guest-physical), and the bytes that it stands for.
    planted: Option<(GuestAddress, Vec<u8>)>,
}

impl Witness<'_> {
    /// Takes the breakpoint away again: nobody is to find it in the guest's memory.
    fn restore(&mut self) {
        if let Some((at, bytes)) = self.planted.take() {
            let _ = self.memory.write_slice(&bytes, at); // was possible before
        }
    }

    fn plant(&mut self, target: Target, cpu: &CpuState) {
        let space = AddressSpace::new(self.memory, cpu, self.physical_bits);
        let End::Page { physical, .. } = space.walk(target.linear).end else { return };
        let at = GuestAddress(physical);
        let ends_page = physical % PAGE_SIZE == PAGE_SIZE - 1;
        let code: &[u8] = if target.ring == 0 && !ends_page { &OUT } else { &[INT3] };
        let mut bytes = vec![0; code.len()];
        let read = self.memory.read_slice(&mut bytes, at);
        if read.and_then(|()| self.memory.write_slice(code, at)).is_ok() {
            self.planted = Some((at, bytes));
        }
    }
}

impl Companion for Witness<'_> {
    fn step(&mut self, vcpu: &Vcpu) -> Result<(), kvm::Error> {
        self.restore();
        let cpu = vcpu.state()?;
        if let Some(target) = leaves_to(self.memory, &cpu, self.physical_bits) {
            self.plant(target, &cpu);
        }
        self.state = Some(cpu);
        self.steps += 1;
        Ok(())
    }
}

fn step(it: &mut RunLoop, last: &Cpu, limits: Limits, second: &mut Second) -> Result<(), Error> {
    let memory = second.memory.clone();
    let physical_bits = last.physical_bits;
    let mut witness =
        Witness { memory: &memory, physical_bits, state: None, steps: 0, planted: None };
    let stepped = step_to_end(it, limits.steps, &mut witness);
    witness.restore();
    let host = |source| Error::Host { doing: "step the guest".to_owned(), source };
    let stepped = stepped.map_err(host)??;
    let steps = witness.steps;
    let after = format!("stepping its {steps} instructions from its last exit on");
    match stepped {
        Stepped::Died => {
            second.state = witness.state;
            second.notes.insert(0, format!(
                "this KVM loses the registers in a triple fault (AMD-V); they come from a second run of the guest, {after}"
            ));
        }
        Stepped::OutOfSteps => second.notes.push(format!(
            "a second run was given up: the guest had not died after {steps} instructions from its last exit on (see --autopsy)"
        )),
        Stepped::Stopped(Verdict::TimedOut { .. }) => second.notes.push(format!(
            "a second run was given up: the guest had not died after {} and {steps} instructions from its last exit on (see --autopsy)",
            humantime::format_duration(limits.time)
        )),
        Stepped::Stopped(verdict) => {
            second.notes.push(format!("a second run was broken off: {verdict}"));
        }
        Stepped::Elsewhere(record) => {
            let what = record.to_string();
            let words: Vec<_> = what.split_whitespace().collect();
            second.notes.push(format!(
                "a second run went another way: it had an exit that the first had not ({})",
                words.join(" ")
            ));
        }
    }
    Ok(())
}

/// For an error on the way.
pub(super) fn failed(e: &Error) -> String {
    format!("a second run was not possible: {}", chain(e))
}
