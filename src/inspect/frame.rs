//! The stack of a handler and the frame that is pushed on it (Intel SDM Vol. 3A 6.12.1,
//! 6.14.2 to 6.14.5).

use super::delivery::{Attempt, Obstacle, tss_field};
use super::descriptor::{self, Missing};
use super::fault::{INVALID_TSS, STACK};
use super::operands;
use super::walk::{Access, AddressSpace};
use crate::x86::CpuState;

/// What is pushed where.
pub(super) struct Push {
    /// Bytes a push.
    pub(super) wide: u64,
    /// Pushes, without those of a change of stacks.
    pub(super) words: u64,
    /// The handler's ring.
    pub(super) ring: u8,
    /// The gate's stack number.
    pub(super) ist: u8,
    pub(super) long: bool,
}

/// Where a stack is.
struct Stack {
    base: u64,
    pointer: u64,
    /// Bits of the stack pointer that count.
    mask: u64,
    limit: u64,
    expands_down: bool,
    from: Option<String>,
    /// The error code where it is too small.
    code: u32,
}

impl Stack {
    fn has(&self, first: u64, last: u64) -> bool {
        match self.expands_down {
            true => first > self.limit && last <= self.mask && first <= last,
            false => last <= self.limit && first <= last,
        }
    }
}

pub(super) fn push(
    space: &AddressSpace<'_>,
    cpu: &CpuState,
    push: &Push,
    attempt: &mut Attempt,
) -> Result<(), Obstacle> {
    let inner = push.ring < cpu.ring();
    let stack = match push.long {
        true => long_stack(space, cpu, push, inner)?,
        false if inner => inner_stack(space, cpu, push)?,
        false => own_stack(cpu),
    };
    let top = stack.base.wrapping_add(stack.pointer & stack.mask);
    attempt.stack = Some(top);
    attempt.stack_from.clone_from(&stack.from);
    // Long mode always saves SS and RSP; elsewhere a change of stacks does.
    let words = push.words + if push.long || inner { 2 } else { 0 };
    let from = stack.from.as_deref().map_or(String::new(), |from| format!(", from {from},"));
    for n in 1..=words {
        let pointer = stack.pointer.wrapping_sub(n * push.wide) & stack.mask;
        let at = stack.base.wrapping_add(pointer);
        if push.long && !space.is_canonical(at) {
            let words = format!("its stack{from} {top:#x} is not canonical");
            return Err(Obstacle::new(words, STACK, 0));
        }
        if !push.long && !stack.has(pointer, pointer.wrapping_add(push.wide - 1)) {
            let words = format!("its stack{from} {top:#x} is outside the stack segment");
            return Err(Obstacle::new(words, STACK, stack.code));
        }
        let at = if push.long { at } else { at & 0xFFFF_FFFF };
        // A handler's stack is its ring's: ring 0 in all that matters.
        space.translate(at, Access::Write, push.ring == 3).map_err(|fault| {
            let words = format!("its stack{from} {top:#x} cannot be written ({})", fault.why);
            Obstacle { words, fault: fault.into() }
        })?;
    }
    Ok(())
}

fn long_stack(
    space: &AddressSpace<'_>,
    cpu: &CpuState,
    push: &Push,
    inner: bool,
) -> Result<Stack, Obstacle> {
    let (pointer, from) = match push.ist {
        0 if !inner => (cpu.regs.rsp, None),
        0 => {
            let what = format!("RSP{}", push.ring);
            let offset = 4 + 8 * u64::from(push.ring);
            (tss_field(space, cpu, offset, 8, &what)?, Some(format!("{what} of the TSS")))
        }
        ist => {
            let what = format!("IST{ist}");
            let offset = 36 + 8 * (u64::from(ist) - 1);
            (tss_field(space, cpu, offset, 8, &what)?, Some(format!("{what} of the TSS")))
        }
    };
    let (pointer, mask, limit) = (pointer & !15, u64::MAX, u64::MAX);
    Ok(Stack { base: 0, pointer, mask, limit, expands_down: false, from, code: 0 })
}

/// Protected mode, a change of rings: SS and ESP from the TSS.
fn inner_stack(space: &AddressSpace<'_>, cpu: &CpuState, push: &Push) -> Result<Stack, Obstacle> {
    let ring = u64::from(push.ring);
    let what = format!("ring {ring}'s stack");
    let code = u32::from(cpu.tr.selector & !3) | 1;
    // Types 1 and 3 are 16-bit TSSs, whose fields are words.
    let (pointer, selector) = match cpu.tr.kind & 8 {
        0 => (
            tss_field(space, cpu, 2 + 4 * ring, 2, &what)?,
            tss_field(space, cpu, 4 + 4 * ring, 2, &what)?,
        ),
        _ => (
            tss_field(space, cpu, 4 + 8 * ring, 4, &what)?,
            tss_field(space, cpu, 8 + 8 * ring, 2, &what)?,
        ),
    };
    let selector = selector as u16;
    let bad = |words: String| Obstacle::new(words, INVALID_TSS, u32::from(selector & !3) | 1);
    let segment = descriptor::lookup(space, cpu, selector).map_err(|missing| match missing {
        Missing::Null => {
            Obstacle::new(format!("{what} in the TSS has a null segment"), INVALID_TSS, code)
        }
        Missing::Beyond(words) => bad(format!("{what} in the TSS: {words}")),
        Missing::Fault(fault) => Obstacle {
            words: format!("{what} in the TSS: its descriptor cannot be read ({})", fault.why),
            fault: fault.into(),
        },
    })?;
    let why = match () {
        () if !segment.is_writable_data() => Some(segment.no_stack_words().to_owned()),
        () if segment.dpl() != push.ring => Some(format!("of ring {}", segment.dpl())),
        () if selector & 3 != u16::from(push.ring) => {
            Some(format!("asked for as ring {}", selector & 3))
        }
        () => None,
    };
    if let Some(why) = why {
        return Err(bad(format!("{what} in the TSS has segment {selector:#x}, which is {why}")));
    }
    if !segment.present() {
        let words = format!("{what} in the TSS has segment {selector:#x}, which is not present");
        return Err(Obstacle::new(words, STACK, u32::from(selector & !3) | 1));
    }
    Ok(Stack {
        base: segment.base(),
        pointer,
        mask: mask(segment.default_32()),
        limit: segment.limit(),
        expands_down: segment.kind() & 4 != 0,
        from: Some("the TSS".to_owned()),
        code: u32::from(selector & !3) | 1,
    })
}

/// A stack segment's B flag: ESP counts, or SP alone.
fn mask(default_32: bool) -> u64 {
    if default_32 { 0xFFFF_FFFF } else { 0xFFFF }
}

fn own_stack(cpu: &CpuState) -> Stack {
    Stack {
        base: cpu.ss.base,
        pointer: cpu.regs.rsp,
        mask: mask(cpu.ss.default_32),
        limit: cpu.ss.limit.into(),
        expands_down: operands::expands_down(&cpu.ss),
        from: None,
        code: 0,
    }
}
