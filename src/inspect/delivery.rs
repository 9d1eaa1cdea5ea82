//! How the processor enters the handler of an exception, played through step by step: the
//! gate, its code segment, the stack, the frame (Intel SDM Vol. 3A 6.12 to 6.15, 8.7).

use serde::Serialize;

use super::descriptor::{self, Descriptor, Missing};
use super::fault::{
    DOUBLE_FAULT, Fault, INVALID_TSS, NOT_PRESENT, Origin, PAGE, PROTECTION, STACK,
};
use super::frame::{self, Push};
use super::walk::{Access, AddressSpace};
use crate::x86::{CpuState, Efer, Mode};

/// A gate of the IDT, or an entry of real mode's vector table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gate {
    /// Its linear address.
    pub at: u64,
    /// Where the handler is.
    pub selector: u16,
    /// Offset in that segment.
    pub offset: u64,
    /// The type field; `None` in real mode.
    pub kind: Option<u8>,
    /// P.
    pub present: bool,
    /// Privilege level for software interrupts.
    pub dpl: u8,
    /// Which of the TSS's stacks it takes in long mode; 0: none.
    pub ist: u8,
}

/// An attempt to enter a handler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// What was delivered.
    pub event: Fault,
    /// The gate, where it could be read.
    pub gate: Option<Gate>,
    /// The stack that the frame goes to, where it came so far: linear.
    pub stack: Option<u64>,
    /// What that stack was taken from, in words.
    pub stack_from: Option<String>,
    /// What stood in the way, in words; `None`: the handler was entered.
    pub obstacle: Option<String>,
    /// The exception that this raised.
    pub raised: Option<Fault>,
}

/// How an exception's delivery ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// Each exception with the attempt to deliver it.
    pub attempts: Vec<Attempt>,
    /// The last was a double fault whose handler could not be entered either.
    pub triple_fault: bool,
}

/// What stands in the way of a handler: words, and the exception that it raises.
pub(super) struct Obstacle {
    pub(super) words: String,
    pub(super) fault: Fault,
}

impl Obstacle {
    pub(super) fn new(words: impl Into<String>, vector: u8, code: u32) -> Self {
        let words = words.into();
        Self { fault: Fault::with_code(vector, code, words.clone()), words }
    }
}

/// Delivers `event` to a vCPU in this state, and what follows from it.
pub fn chain(space: &AddressSpace<'_>, cpu: &CpuState, event: Fault) -> Chain {
    let mut attempts = Vec::new();
    let mut next = Some(event);
    let mut triple_fault = false;
    // A benign exception, then a fault, then a double fault: never more than four.
    while let Some(event) = next.take().filter(|_| attempts.len() < 4) {
        let attempt = attempt(space, cpu, event);
        if let Some(raised) = &attempt.raised {
            let after = match attempt.event.origin {
                Origin::Exception => combine(attempt.event.vector, raised.vector),
                Origin::External | Origin::Software => After::Serial,
            };
            match after {
                After::Serial => next = Some(raised.clone()),
                After::DoubleFault => {
                    next = Some(Fault::new(DOUBLE_FAULT, ""));
                }
                After::TripleFault => triple_fault = true,
            }
        }
        attempts.push(attempt);
    }
    Chain { attempts, triple_fault }
}

enum After {
    Serial,
    DoubleFault,
    TripleFault,
}

/// What a second exception makes of a first (Intel SDM Vol. 3A, tables 6-4 and 6-5).
fn combine(first: u8, second: u8) -> After {
    let contributory = |vector| matches!(vector, 0 | 10..=13);
    match first {
        DOUBLE_FAULT if contributory(second) || second == PAGE => After::TripleFault,
        PAGE if contributory(second) || second == PAGE => After::DoubleFault,
        first if contributory(first) && contributory(second) => After::DoubleFault,
        _ => After::Serial,
    }
}

fn attempt(space: &AddressSpace<'_>, cpu: &CpuState, event: Fault) -> Attempt {
    let mut attempt =
        Attempt { event, gate: None, stack: None, stack_from: None, obstacle: None, raised: None };
    let delivered = match cpu.mode() {
        Mode::Real if !cpu.cr0.contains(crate::x86::Cr0::PE) => real(space, cpu, &mut attempt),
        _ => protected(space, cpu, &mut attempt),
    };
    if let Err(Obstacle { words, mut fault }) = delivered {
        // EXT tells of an event from outside the program (Vol. 3A 6.13).
        let is_software = attempt.event.origin == Origin::Software;
        if let Some(code) =
            fault.error_code.as_mut().filter(|_| is_software && fault.vector != PAGE)
        {
            *code &= !1;
        }
        attempt.obstacle = Some(words);
        attempt.raised = Some(fault);
    }
    attempt
}

/// Real mode: four bytes an entry, and three words on the stack.
fn real(space: &AddressSpace<'_>, cpu: &CpuState, attempt: &mut Attempt) -> Result<(), Obstacle> {
    let vector = attempt.event.vector;
    let offset = u64::from(vector) * 4;
    if offset + 3 > cpu.idt.limit.into() {
        return Err(short_idt(cpu, vector, 0));
    }
    let at = cpu.idt.base.wrapping_add(offset);
    let entry = space.peek_number(at, 4).unwrap_or(0xFFFF_FFFF);
    attempt.gate = Some(Gate {
        at,
        selector: (entry >> 16) as u16,
        offset: entry & 0xFFFF,
        kind: None,
        present: true,
        dpl: 0,
        ist: 0,
    });
    let sp = cpu.regs.rsp & 0xFFFF;
    attempt.stack = Some(cpu.linear_rsp());
    if (1..6).contains(&sp) {
        return Err(Obstacle::new(format!("its stack wraps around (SP is {sp:#x})"), STACK, 0));
    }
    Ok(())
}

fn short_idt(cpu: &CpuState, vector: u8, code: u32) -> Obstacle {
    let limit = cpu.idt.limit;
    let words = match limit {
        0 => "the IDT's limit is 0".to_owned(),
        _ => format!("the IDT ends before entry {vector} (its limit is {limit:#x})"),
    };
    Obstacle::new(words, PROTECTION, code)
}

fn protected(
    space: &AddressSpace<'_>,
    cpu: &CpuState,
    attempt: &mut Attempt,
) -> Result<(), Obstacle> {
    let long = cpu.efer.contains(Efer::LMA);
    let gate = read_gate(space, cpu, attempt.event.vector, long)?;
    attempt.gate = Some(gate.clone());
    let vector = u32::from(attempt.event.vector);
    // The error code of a bad gate: its index, IDT, EXT (Vol. 3A 6.13).
    let code = vector << 3 | 3;
    let n = attempt.event.vector;
    let kind = gate.kind.unwrap_or(0);
    let usable = if long { matches!(kind, 14 | 15) } else { matches!(kind, 5..=7 | 14 | 15) };
    if !usable {
        let raw = u64::from(kind) << 40;
        let words = match kind {
            0 if gate.offset == 0 && gate.selector == 0 => format!("IDT entry {n} is empty"),
            _ => format!(
                "IDT entry {n} is {} (type {kind:#x}), not an interrupt or trap gate",
                Descriptor(raw).words()
            ),
        };
        return Err(Obstacle::new(words, PROTECTION, code));
    }
    if attempt.event.origin == Origin::Software && gate.dpl < cpu.ring() {
        let words = format!(
            "IDT entry {n} is for ring {} and below (its DPL), and this is ring {}",
            gate.dpl,
            cpu.ring()
        );
        return Err(Obstacle::new(words, PROTECTION, code));
    }
    if !gate.present {
        return Err(Obstacle::new(format!("IDT entry {n} is not present"), NOT_PRESENT, code));
    }
    if kind == 5 {
        return task_gate(space, cpu, gate.selector);
    }
    let target = handler_segment(space, cpu, gate.selector, n, long)?;
    let push = Push {
        wide: if long {
            8
        } else if kind >= 14 {
            4
        } else {
            2
        },
        words: 3 + u64::from(attempt.event.error_code.is_some()),
        ring: if target.is_conforming() { cpu.ring() } else { target.dpl() },
        ist: gate.ist,
        long,
    };
    frame::push(space, cpu, &push, attempt)?;
    if long && !space.is_canonical(gate.offset) {
        let words = format!("its handler's address {:#x} is not canonical", gate.offset);
        return Err(Obstacle::new(words, PROTECTION, 1));
    }
    Ok(())
}

pub(super) fn read_gate(
    space: &AddressSpace<'_>,
    cpu: &CpuState,
    vector: u8,
    long: bool,
) -> Result<Gate, Obstacle> {
    let size = if long { 16 } else { 8 };
    let offset = u64::from(vector) * size;
    if offset + size - 1 > cpu.idt.limit.into() {
        return Err(short_idt(cpu, vector, u32::from(vector) << 3 | 3));
    }
    let at = cpu.idt.base.wrapping_add(offset);
    let unreadable = |fault: super::walk::PageFault| {
        let why = &fault.why;
        let words = format!("IDT entry {vector}, at {at:#x}, cannot be read ({why})");
        Obstacle { words, fault: fault.into() }
    };
    if long && !space.is_canonical(at) {
        let words = format!("the IDT's base {:#x} is not canonical", cpu.idt.base);
        return Err(Obstacle::new(words, PROTECTION, u32::from(vector) << 3 | 3));
    }
    let low = descriptor::read(space, at).map_err(unreadable)?;
    let high = match long {
        true => descriptor::read(space, at.wrapping_add(8)).map_err(unreadable)?,
        false => 0,
    };
    let is_memory = |part| space.peek_number(at.wrapping_add(part), 8).is_some();
    if !is_memory(0) || long && !is_memory(8) {
        // It reads as all ones, which is no gate.
        let words = format!("IDT entry {vector}, at {at:#x}, lies where no memory is");
        return Err(Obstacle::new(words, PROTECTION, u32::from(vector) << 3 | 3));
    }
    let kind = (low >> 40 & 0xF) as u8;
    let upper = if kind >= 14 || long { low >> 48 << 16 } else { 0 };
    Ok(Gate {
        at,
        selector: (low >> 16) as u16,
        offset: low & 0xFFFF | upper | (high & 0xFFFF_FFFF) << 32,
        // The S bit makes it no gate at all.
        kind: Some(if low >> 44 & 1 != 0 { 0 } else { kind }),
        present: low >> 47 & 1 != 0,
        dpl: (low >> 45 & 3) as u8,
        ist: if long { (low >> 32 & 7) as u8 } else { 0 },
    })
}

/// The gate's code segment.
fn handler_segment(
    space: &AddressSpace<'_>,
    cpu: &CpuState,
    selector: u16,
    vector: u8,
    long: bool,
) -> Result<Descriptor, Obstacle> {
    let code = u32::from(selector & !3) | 1;
    let of = format!("IDT entry {vector}'s code segment");
    let target = descriptor::lookup(space, cpu, selector).map_err(|missing| match missing {
        Missing::Null => Obstacle::new(format!("{of} is null"), PROTECTION, 1),
        Missing::Beyond(words) => Obstacle::new(format!("{of}: {words}"), PROTECTION, code),
        Missing::Fault(fault) => {
            let why = &fault.why;
            let words = format!("{of} {selector:#x}: its descriptor cannot be read ({why})");
            Obstacle { words, fault: fault.into() }
        }
    })?;
    let bad = |words: String| Err(Obstacle::new(words, PROTECTION, code));
    match () {
        () if !target.is_code() => bad(format!("{of} {selector:#x} is {}", target.words())),
        () if long && (!target.long() || target.default_32()) => {
            bad(format!("{of} {selector:#x} is not a 64-bit one"))
        }
        () if target.dpl() > cpu.ring() => {
            let (dpl, ring) = (target.dpl(), cpu.ring());
            bad(format!("{of} {selector:#x} is of ring {dpl}, less privileged than ring {ring}"))
        }
        () if !target.present() => {
            let words = format!("{of} {selector:#x} is not present");
            Err(Obstacle::new(words, NOT_PRESENT, code))
        }
        () => Ok(target),
    }
}

/// A task gate switches to another task; only its descriptor is looked at here.
fn task_gate(space: &AddressSpace<'_>, cpu: &CpuState, selector: u16) -> Result<(), Obstacle> {
    let code = u32::from(selector & !3) | 1;
    let bad = |words: String| Err(Obstacle::new(words, PROTECTION, code));
    match descriptor::lookup(space, cpu, selector) {
        Err(Missing::Null) => bad("its task gate's selector is null".to_owned()),
        Err(Missing::Beyond(words)) => bad(format!("its task gate: {words}")),
        Err(Missing::Fault(fault)) => {
            let words = format!("its task gate's TSS descriptor cannot be read ({})", fault.why);
            Err(Obstacle { words, fault: fault.into() })
        }
        Ok(tss) if tss.is_segment() || !matches!(tss.kind(), 1 | 9) => {
            bad(format!("its task gate's selector {selector:#x} is {}", tss.words()))
        }
        Ok(tss) if !tss.present() => {
            let words = format!("its task gate's TSS {selector:#x} is not present");
            Err(Obstacle::new(words, NOT_PRESENT, code))
        }
        Ok(_) => Ok(()),
    }
}

/// A field of the TSS: `size` bytes at `offset`.
pub(super) fn tss_field(
    space: &AddressSpace<'_>,
    cpu: &CpuState,
    offset: u64,
    size: u64,
    what: &str,
) -> Result<u64, Obstacle> {
    let code = u32::from(cpu.tr.selector & !3) | 1;
    let limit = u64::from(cpu.tr.limit);
    if offset + size - 1 > limit {
        let words = format!("the TSS ends before {what} (its limit is {limit:#x})");
        return Err(Obstacle::new(words, INVALID_TSS, code));
    }
    let at = cpu.tr.base.wrapping_add(offset);
    for byte in [at, at.wrapping_add(size - 1)] {
        space.translate(byte, Access::Read, false).map_err(|fault| {
            let words = format!("{what} in the TSS, at {at:#x}, cannot be read ({})", fault.why);
            Obstacle { words, fault: fault.into() }
        })?;
    }
    Ok(space.peek_number(at, size as usize).unwrap_or(u64::MAX))
}
