//! The second run of a guest that died in a triple fault on AMD-V, where KVM puts the
//! processor through INIT and its registers are lost: the same image, the same input, no
//! output, up to the last exit that the first run had, then instruction by instruction.

use std::time::Duration;

use super::build::{console, incarnate, load};
use super::input::Pump;
use super::{Error, Input, Machine, Output, chain};
use crate::inspect::walk::{AddressSpace, End};
use crate::inspect::{Cpu, Registers, Target, leaves_to};
use crate::kvm::{self, ExitKind, LocalApic, Vcpu};
use crate::mem::{Bytes, GuestAddress, GuestMemory, PAGE_SIZE};
use crate::vcpu::{Companion, Counts, OUT, Record, RunLoop, Stepped, run_to_exit, step_to_end};
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
    /// The local APIC's at that time.
    pub(super) local_apic: Option<LocalApic>,
    /// Did it go the first run's way, as far as can be told?
    pub(super) same_way: bool,
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
    let memory = || load(&first.config, &first.files);
    let (_, mut again) = incarnate(&first.config, memory, &control, &console, &pump)?;
    again.mailbox.set_test(&first.test);
    let mut second = Second {
        state: None,
        local_apic: None,
        same_way: true,
        memory: again.memory.clone(),
        notes: Vec::new(),
    };
    let Some(it) = again.loops.first_mut() else { return Ok(second) };
    let exits = exits(&first.counts);
    let (counts, verdict) = run_to_exit(it, &control, exits);
    if let Some(verdict) = verdict {
        second.notes.push(format!(
            "a second run of the guest went another way: it came to an end of its own before the first run's last exit ({verdict})"
        ));
        pump.end();
        return Ok(second);
    }
    if exits > 0 {
        compare(first, last, it, &counts, &mut second);
    }
    let since = if exits > 0 { "last exit" } else { "start" };
    let stepped = step(it, limits, &mut second, since);
    pump.end();
    stepped.map(|()| second)
}

/// Exits that are the guest's own doing.
fn exits(counts: &Counts) -> u64 {
    counts.exits_of(ExitKind::is_guests_own).map(|(_, count)| count).sum()
}

/// Did it come to the same exit in the same way?
fn compare(first: &Machine, last: &Cpu, it: &RunLoop, counts: &Counts, second: &mut Second) {
    let kinds = |counts: &Counts| counts.exits_of(ExitKind::is_guests_own).collect::<Vec<_>>();
    let (before, now) = (kinds(&first.counts), kinds(counts));
    if before != now {
        second.same_way = false;
        second.notes.push(format!(
            "the second run went another way: its exits were {now:?}, the first run's {before:?}"
        ));
    }
    // An interruption comes at another place each time.
    let exits = it.recorder.tail(last.exits.len());
    let (Some(then), Some(now)) = (last_own(&last.exits), last_own(&exits)) else { return };
    if then != now {
        second.same_way = false;
        second.notes.push(format!(
            "the second run went another way: its last exit before the end was at {now:#x}, the first run's at {then:#x}"
        ));
        return;
    }
    let Registers::General { regs, rflags } = &last.registers else { return };
    if regs.rip == then && (*regs, *rflags) != it.vcpu.previous_registers() {
        second.notes.push(
            "the second run's last exit was at the same place, with other values in some registers"
                .to_owned(),
        );
    }
}

/// Where the last exit was that was the guest's own doing.
fn last_own(exits: &[Record]) -> Option<u64> {
    exits.iter().rfind(|record| record.kind.is_guests_own()).map(|record| record.rip)
}

/// Keeps the state before the instruction that runs.
struct Witness<'m> {
    memory: &'m GuestMemory,
    state: Option<CpuState>,
    local_apic: Option<LocalApic>,
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
        let space = AddressSpace::new(self.memory, cpu);
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
        if let Some(target) = leaves_to(self.memory, &cpu) {
            self.plant(target, &cpu);
        }
        self.state = Some(cpu);
        self.local_apic = vcpu.local_apic()?;
        self.steps += 1;
        Ok(())
    }
}

/// Steps it to its end from the first run's last exit, or from its start: what `since` says.
fn step(it: &mut RunLoop, limits: Limits, second: &mut Second, since: &str) -> Result<(), Error> {
    let memory = second.memory.clone();
    let mut witness =
        Witness { memory: &memory, state: None, local_apic: None, steps: 0, planted: None };
    let stepped = step_to_end(it, limits.steps, &mut witness);
    witness.restore();
    let host = |source| Error::Host { doing: "step the guest".to_owned(), source };
    let stepped = stepped.map_err(host)??;
    let steps = witness.steps;
    let after = match steps {
        1 => format!("stepping its one instruction from its {since} on"),
        _ => format!("stepping its {steps} instructions from its {since} on"),
    };
    match stepped {
        Stepped::Died => {
            (second.state, second.local_apic) = (witness.state, witness.local_apic);
            second.notes.insert(0, format!(
                "this KVM loses the registers in a triple fault (AMD-V); they come from a second run of the guest, {after}"
            ));
        }
        Stepped::OutOfSteps => second.notes.push(format!(
            "a second run was given up: the guest had not died after {steps} instructions from its {since} on (see --autopsy)"
        )),
        Stepped::Stopped(Verdict::TimedOut { .. }) => second.notes.push(format!(
            "a second run was given up: the guest had not died after {} and {steps} instructions from its {since} on (see --autopsy)",
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
