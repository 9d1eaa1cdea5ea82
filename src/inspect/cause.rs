//! The first line: which instruction faulted and why, why its handler could not be entered,
//! and why the double fault's could not either.

use std::fmt::Write as _;

use super::backtrace::{Found, Frame};
use super::debug;
use super::delivery::{self, Attempt, Chain};
use super::disasm;
use super::fault::{DOUBLE_FAULT, Fault, Standing};
use super::symbols::Place;
use super::walk::{Access, AddressSpace, End};
use super::{Cpu, CpuFindings, Ending, Registers, Source, Subject};
use crate::kvm::{Backend, LocalApic};
use crate::x86::{CpuState, Efer, Mode, Rflags};

/// The exceptions that ended in a triple fault, as far as the state tells.
pub(super) fn faults(at: &Standing<'_>, cpu: &Cpu) -> Option<Chain> {
    let chain = |event| delivery::chain(&at.space, at.cpu, event);
    let told = debug::told(at.cpu, &cpu.debug_registers).map(chain);
    if told.as_ref().is_some_and(|chain| chain.triple_fault) {
        return told;
    }
    let raised = at.fault().map(chain);
    if raised.as_ref().is_some_and(|chain| chain.triple_fault) {
        return raised;
    }
    let exception = cpu.events.exception.map(|vector| Fault::new(vector, ""));
    let events = debug::single_step(at.cpu).into_iter().chain(exception);
    let mut chains = events.chain(interrupts(at, cpu)).map(chain);
    chains.find(|chain| chain.triple_fault).or(raised)
}

/// The interrupts that may have come here, the likeliest first: what KVM was delivering, what a
/// controller has handed over, what one still holds.
fn interrupts(at: &Standing<'_>, cpu: &Cpu) -> Vec<Fault> {
    let named = |vectors: &[u8], why| {
        let highest_first = vectors.iter().rev();
        highest_first.map(|vector| Fault::interrupt(*vector, why)).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = cpu.events.interrupt.iter().map(|it| Fault::interrupt(*it, "")).collect();
    if !at.cpu.rflags.contains(Rflags::IF) {
        return all;
    }
    let none = LocalApic::default();
    let apic = cpu.local_apic.as_ref().filter(|apic| apic.enabled).unwrap_or(&none);
    all.extend(named(&apic.in_service, "in service in the local APIC"));
    all.extend(named(&cpu.pic, "from the PIC"));
    all.extend(named(&apic.pending, "pending in the local APIC"));
    all
}

pub(super) fn summary(subject: &Subject<'_>, cpu: &CpuFindings) -> String {
    let whole = match &cpu.registers {
        Registers::Whole(state) => Some(state),
        Registers::General { .. } => None,
    };
    let at = place(cpu);
    match (&subject.ending, whole) {
        (Ending::TripleFault, Some(state)) if subject.source == Source::OtherWay => {
            format!("in a second run, that went another way: {}", triple_fault(subject, cpu, state))
        }
        (Ending::TripleFault, Some(state)) => triple_fault(subject, cpu, state),
        (Ending::TripleFault, None) => {
            let since = match subject.source {
                Source::Start => "start",
                _ => "last exit",
            };
            format!("triple fault some time after the guest's {since}, {at}; the rest is lost")
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
        (Ending::TimedOut(limit), _) if subject.source == Source::BeforeStart => {
            format!("not started within {limit}: the guest's first instruction is {at}")
        }
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
    let how = match ending {
        Ending::TripleFault => "triple fault".to_owned(),
        Ending::Unrunnable => "an instruction that KVM could not run".to_owned(),
        Ending::InvalidEntry => "the processor's state is not a valid one".to_owned(),
        Ending::Panic(detail) => format!("the guest reported a panic{}", spaced(detail)),
        Ending::Strict(detail) => format!("strict mode{}", spaced(detail)),
        Ending::Halted => "halted for ever".to_owned(),
        Ending::TimedOut(limit) => format!("still running after {limit}"),
    };
    format!("{how}; no processor's state could be read")
}

/// "in `memset+0x1c` (mem.c:41), called from `main+0x10` (main.c:3)", or "at 0x100123".
fn place(cpu: &CpuFindings) -> String {
    let rip = cpu.backtrace.first().map_or(cpu.registers.regs().rip, |frame| frame.rip);
    let here = match &cpu.place {
        Some(place) => format!("in {}", quoted(place)),
        None => format!("at {}", cpu.address(rip)),
    };
    here + &caller(cpu)
}

/// Who called, and what the handler interrupted that this is in.
fn caller(cpu: &CpuFindings) -> String {
    let named = |it: &Frame| it.place.as_ref().map_or_else(|| cpu.address(it.rip), quoted);
    let frames = cpu.backtrace.get(1..).unwrap_or_default();
    let by_call = frames.first().filter(|it| it.found != Found::InterruptFrame);
    let called = by_call.map_or(String::new(), |it| format!(", called from {}", named(it)));
    let interrupted = frames.iter().find(|it| it.found == Found::InterruptFrame);
    match interrupted {
        Some(it) => format!("{called}, in a handler that interrupted {}", named(it)),
        None => called,
    }
}

fn quoted(place: &Place) -> String {
    format!("`{}+{:#x}`{}", place.function, place.offset, place.source())
}

fn triple_fault(subject: &Subject<'_>, cpu: &CpuFindings, state: &CpuState) -> String {
    let at = place(cpu);
    let Some(chain) = &cpu.faults else {
        return format!("triple fault {at}: {}", unexplained(subject.backend, cpu, state));
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
            (None, _) => {
                words.push_str(", and its handler can be entered");
                if let Some(top) = lost_stack(subject, attempt, state) {
                    let _ = write!(words, ", but its stack {top:#x} lies where no memory is");
                    return words + "; triple fault";
                }
            }
        }
        last = attempt.obstacle.as_deref().unwrap_or("");
    }
    if chain.triple_fault {
        words.push_str("triple fault");
    } else if matches!(subject.source, Source::SecondRun | Source::OtherWay) {
        words.push_str("; it died later, in a handler or after it");
    } else {
        words.push_str("; what made it a triple fault is not in the state");
    }
    if state.mode() != Mode::Real && (state.idt.base, state.idt.limit) == (0, 0x3FF) {
        words.push_str(
            "; the IDT is still that of real mode (base 0, limit 0x3ff): none was loaded",
        );
    }
    words
}

/// The top of a handler's stack, where there is no memory below it. Processors write there all the
/// same, into nothing; a KVM need not go on.
fn lost_stack(subject: &Subject<'_>, attempt: &Attempt, state: &CpuState) -> Option<u64> {
    let space = AddressSpace::new(subject.memory, state);
    attempt.stack.filter(|top| space.peek_number(top.wrapping_sub(1), 1).is_none())
}

/// What there is to say where no fault is found.
fn unexplained(backend: Backend, cpu: &CpuFindings, state: &CpuState) -> String {
    let Some(line) = cpu.code.iter().find(|line| line.here) else {
        return "code that cannot be read".to_owned();
    };
    let text = &line.text;
    let mut words = format!("nothing in the state tells why `{text}` would fault");
    if state.rflags.contains(Rflags::IF) {
        words.push_str("; interrupts are on: one may have come, and found no handler");
    }
    if cpu.events.nmis_masked {
        words.push_str(
            "; NMIs are masked, as while one is delivered: one may have found no handler",
        );
    }
    let pages = text.starts_with("mov cr0,") && !state.efer.contains(Efer::LME);
    if pages && backend == Backend::KvmPvm {
        words.push_str("; kvm_pvm has no paging outside long mode");
    }
    words
}

/// An exception that a delivery raised: its reason has been told.
fn raised(fault: &Fault) -> String {
    let address = fault.address.map_or(String::new(), |address| format!(" at {address:#x}"));
    fault.name() + &address
}

/// KVM gave up on an instruction, or on the place that it should have come from.
fn unrunnable(subject: &Subject<'_>, cpu: &CpuFindings, state: &CpuState) -> String {
    let space = AddressSpace::new(subject.memory, state);
    let at = Standing::new(space, state);
    let (rip, place) = (state.linear_rip(), place(cpu));
    let why = cpu.kvm.first().map_or(String::new(), |why| format!(" ({why})"));
    if let End::Page { physical, memory: false, .. } = space.walk(rip).end {
        let behind =
            if physical == rip { String::new() } else { format!(", physical {physical:#x}") };
        let place = match &cpu.place {
            Some(_) => format!(", {place}"),
            None => caller(cpu),
        };
        return format!("instruction fetch at {rip:#x}{behind}, where no memory is{place}{why}");
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

/// What an exception is called, with its vector and error code.
pub(super) fn fault_kind(fault: &Fault) -> String {
    let code = fault.error_code.map_or(String::new(), |code| format!(", error code {code:#x}"));
    let access = match fault.access {
        Some(Access::Execute) => " on instruction fetch",
        _ => "",
    };
    format!("{}{access} (vector {}{code})", fault.name(), fault.vector)
}
