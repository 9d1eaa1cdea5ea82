//! The stack of a handler and the frame that is pushed on it (Intel SDM Vol. 3A 6.12.1,
//! 6.14.2 to 6.14.5).

use super::delivery::{Attempt, Obstacle, tss_field};
use super::descriptor::{self, Missing};
use super::fault::{INVALID_TSS, STACK};
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
    limit: u64,
    from: Option<String>,
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
    let top = stack.base.wrapping_add(stack.pointer);
    attempt.stack = Some(top);
    attempt.stack_from.clone_from(&stack.from);
    // Long mode always saves SS and RSP; elsewhere a change of stacks does.
    let words = push.words + if push.long || inner { 2 } else { 0 };
    let from = stack.from.as_deref().map_or(String::new(), |from| format!(", from {from},"));
    for n in 1..=words {
        let pointer = stack.pointer.wrapping_sub(n * push.wide);
        let at = stack.base.wrapping_add(pointer);
        if push.long && !space.is_canonical(at) {
            let words = format!("its stack{from} {top:#x} is not canonical");
            return Err(Obstacle::new(words, STACK, 0));
        }
        if !push.long && pointer.wrapping_add(push.wide - 1) > stack.limit {
            let words = format!("its stack{from} {top:#x} is outside the stack segment");
            return Err(Obstacle::new(words, STACK, 0));
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
    Ok(Stack { base: 0, pointer: pointer & !15, limit: u64::MAX, from })
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
    if !segment.is_writable_data() || segment.dpl() != push.ring {
        let words = segment.words();
        return Err(bad(format!("{what} in the TSS has segment {selector:#x}, which is {words}")));
    }
    if !segment.present() {
        let words = format!("{what} in the TSS has segment {selector:#x}, which is not present");
        return Err(Obstacle::new(words, STACK, u32::from(selector & !3) | 1));
    }
    let from = Some("the TSS".to_owned());
    Ok(Stack { base: segment.base(), pointer, limit: segment.limit(), from })
}

fn own_stack(cpu: &CpuState) -> Stack {
    let pointer =
        if cpu.ss.default_32 { cpu.regs.rsp & 0xFFFF_FFFF } else { cpu.regs.rsp & 0xFFFF };
    Stack { base: cpu.ss.base, pointer, limit: cpu.ss.limit.into(), from: None }
}
