//! The first line: which instruction faulted and why, why its handler could not be entered,
//! and why the double fault's could not either.

use std::fmt::Write as _;

use super::backtrace::Frame;
use super::delivery::{self, Chain};
use super::disasm;
use super::fault::{self, DOUBLE_FAULT, Fault, Standing};
use super::symbols::Place;
use super::walk::{Access, AddressSpace, End};
use super::{Cpu, CpuFindings, Ending, Registers, Source, Subject};
use crate::x86::{CpuState, Rflags};

/// The exceptions that ended in a triple fault, as far as the state tells.
pub(super) fn faults(at: &Standing<'_>, cpu: &Cpu) -> Option<Chain> {
    let raised = at.fault().map(|fault| delivery::chain(&at.space, at.cpu, fault));
    if raised.as_ref().is_some_and(|chain| chain.triple_fault) {
        return raised;
    }
    let vectors = [cpu.events.exception, cpu.events.interrupt];
    let on_its_way = vectors.into_iter().flatten().map(|vector| Fault::new(vector, ""));
    // Nothing else: an interrupt that came, where interrupts are on.
    let any = at.cpu.rflags.contains(Rflags::IF).then(|| Fault::new(32, "whichever came"));
    let mut chains = on_its_way.chain(any).map(|event| delivery::chain(&at.space, at.cpu, event));
    chains.find(|chain| chain.triple_fault).or(raised)
}

pub(super) fn summary(subject: &Subject<'_>, cpu: &CpuFindings) -> String {
    let whole = match &cpu.registers {
        Registers::Whole(state) => Some(state),
        Registers::General { .. } => None,
    };
    let at = place(cpu);
    match (&subject.ending, whole) {
        (Ending::TripleFault, Some(_)) => triple_fault(cpu, subject.source),
        (Ending::TripleFault, None) => {
            format!("triple fault some time after the guest's last exit, {at}; the rest is lost")
        }
        (Ending::Unrunnable, Some(state)) => unrunnable(subject, cpu, state),
        (Ending::Unrunnable, None) => format!("an instruction that KVM could not run {at}"),
        (Ending::InvalidEntry, _) => {
            let why = cpu.kvm.first().map_or("the registers do not go together", String::as_str);
            format!("the processor's state is not a valid one {at}: {why}")
        }
        (Ending::Panic(detail), _) => format!("the guest reported a panic{} {at}", spaced(detail)),
        (Ending::Strict(detail), _) => format!("strict mode{} {at}", spaced(detail)),
        (Ending::Halted, Some(state)) => {
            format!("halted for ever {at}: {}", halt_words(state))
        }
        (Ending::Halted, None) => format!("halted for ever {at}"),
        (Ending::TimedOut(limit), state) => {
            let how = state.map_or(String::new(), |state| running(cpu, state));
            format!("still running after {limit} {at}{how}")
        }
    }
}

fn spaced(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" {detail}") }
}

/// The first line where no vCPU could be asked.
pub(super) fn without_state(ending: &Ending) -> String {
    format!("{ending:?}, and no processor's state could be read")
}

/// "in `memset+0x1c` (mem.c:41), called from `main+0x10` (main.c:3)", or "at 0x100123".
fn place(cpu: &CpuFindings) -> String {
    let rip = cpu.registers.regs().rip;
    let mut text = match &cpu.place {
        Some(place) => format!("in {}", quoted(place)),
        None => format!("at {rip:#x}"),
    };
    if let Some(caller) = cpu.backtrace.get(1) {
        let _ = write!(text, ", called from {}", frame(caller));
    }
    text
}

fn frame(frame: &Frame) -> String {
    frame.place.as_ref().map_or_else(|| format!("{:#x}", frame.rip), quoted)
}

fn quoted(place: &Place) -> String {
    let name = format!("`{}+{:#x}`", place.function, place.offset);
    let whole = place.to_string();
    let lines = whole.split_once(" (").map_or(String::new(), |(_, lines)| format!(" ({lines}"));
    name + &lines
}

fn triple_fault(cpu: &CpuFindings, source: Source) -> String {
    let at = place(cpu);
    let Some(chain) = &cpu.faults else {
        let text = cpu.code.iter().find(|line| line.here).map_or("nothing", |line| &line.text);
        return format!("triple fault {at}: nothing in the state tells why `{text}` would fault");
    };
    let mut words = String::new();
    let mut last = "";
    for (n, attempt) in chain.attempts.iter().enumerate() {
        match n {
            0 => _ = write!(words, "{} {at}", attempt.event.words()),
            _ if attempt.event.vector == DOUBLE_FAULT => words.push_str("double fault"),
            _ => _ = write!(words, "then {}", raised(&attempt.event)),
        }
        match (attempt.obstacle.as_deref(), n) {
            (Some(obstacle), 0) => {
                _ = write!(words, "; its handler could not be entered: {obstacle}; ");
            }
            (Some(obstacle), _) if obstacle == last => words.push_str(": the same; "),
            (Some(obstacle), _) => _ = write!(words, ": {obstacle}; "),
            (None, _) => words.push_str(", and its handler can be entered"),
        }
        last = attempt.obstacle.as_deref().unwrap_or("");
    }
    if chain.triple_fault {
        words.push_str("triple fault");
    } else if source == Source::SecondRun {
        words.push_str("; it died later, in a handler or after it");
    } else {
        words.push_str("; what made it a triple fault is not in the state");
    }
    words
}

/// An exception that a delivery raised: its reason has been told.
fn raised(fault: &Fault) -> String {
    let address = fault.address.map_or(String::new(), |address| format!(" at {address:#x}"));
    fault::name(fault.vector) + &address
}

/// KVM gave up on an instruction, or on the place that it should have come from.
fn unrunnable(subject: &Subject<'_>, cpu: &CpuFindings, state: &CpuState) -> String {
    let bits = subject.cpus.iter().find(|it| it.id == cpu.id).map_or(52, |it| it.physical_bits);
    let space = AddressSpace::new(subject.memory, state, bits);
    let at = Standing::new(space, state);
    let (rip, place) = (state.linear_rip(), place(cpu));
    let why = cpu.kvm.first().map_or(String::new(), |why| format!(" ({why})"));
    if let End::Page { physical, memory: false, .. } = space.walk(rip).end {
        let behind =
            if physical == rip { String::new() } else { format!(", physical {physical:#x}") };
        return format!("instruction fetch at {rip:#x}{behind}, where no memory is, {place}{why}");
    }
    if let Err(fault) = at.fetch(state.regs.rip, 1) {
        return format!("{} {place}, which KVM could not deliver{why}", fault.words());
    }
    match at.instruction() {
        Some(it) if !it.is_invalid() => {
            format!("KVM could not run `{}` {place}{why}", disasm::text(&it))
        }
        _ => format!("KVM could not run the bytes {} {place}{why}", at.code.hex(state.regs.rip, 8)),
    }
}

fn halt_words(state: &CpuState) -> &'static str {
    if state.rflags.contains(Rflags::IF) {
        "hlt with interrupts on, and nothing that could send one"
    } else {
        "hlt with interrupts off"
    }
}

/// What a guest does that does not end.
fn running(cpu: &CpuFindings, state: &CpuState) -> String {
    let interrupts = if state.rflags.contains(Rflags::IF) { "on" } else { "off" };
    let here = cpu.code.iter().find(|line| line.here);
    let own = format!("{:#x}", state.regs.rip);
    let jumps = here.is_some_and(|line| {
        line.text.starts_with('j') && line.text.split([' ', ',']).any(|word| word == own)
    });
    let what = match here {
        Some(_) if jumps => "a jump to itself".to_owned(),
        Some(line) => format!("`{}`", line.text),
        None => "code that cannot be read".to_owned(),
    };
    format!(": {what}, with interrupts {interrupts}")
}

/// The name of the access in a page fault's error code, for the page.
pub(super) fn fault_kind(fault: &Fault) -> String {
    let code = fault.error_code.map_or(String::new(), |code| format!(", error code {code:#x}"));
    let access = match fault.access {
        Some(Access::Execute) => " on instruction fetch",
        _ => "",
    };
    format!("{}{access} (vector {}{code})", fault::name(fault.vector), fault.vector)
}
