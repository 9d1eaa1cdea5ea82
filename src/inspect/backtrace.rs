//! Who called whom: by the image's unwind tables, by frame pointers, or by the return addresses on
//! the stack; and what a handler interrupted.

use iced_x86::{Instruction, Mnemonic, Register};
use serde::Serialize;

use super::fault::Standing;
use super::interrupted;
use super::symbols::{Place, Symbols};
use super::unwind;
use crate::x86::Mode;

/// Frames that are shown.
const DEEPEST: usize = 32;

/// How a frame was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    /// RIP itself, or the instruction before it that the vCPU ended by.
    Rip,
    /// By an unwind table.
    UnwindTable,
    /// By a frame pointer.
    FramePointer,
    /// It lies on top of the stack, and follows a call instruction.
    TopOfStack,
    /// It lies on the stack, and follows a call of this very function, which makes no frame.
    OnStack,
    /// A handler interrupted it: by the frame that the processor pushed.
    InterruptFrame,
}

/// Words of the stack that are looked at for a function's own return address.
const LOOKED_AT: u64 = 256;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// RIP, or where it would return to.
    pub rip: u64,
    /// The same by its names.
    pub place: Option<Place>,
    /// How it was found.
    pub found: Found,
}

/// What a frame is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) rip: u64,
    pub(super) rsp: u64,
    pub(super) rbp: u64,
    /// RIP is where an instruction runs, not where a call returns to.
    pub(super) exact: bool,
}

impl Cursor {
    /// Who called: where the call returns to, and the stack pointer then.
    fn caller(self, rip: u64, rsp: u64) -> Self {
        Self { rip, rsp, exact: false, ..self }
    }

    /// RIP of an instruction that runs, or a byte of it: a call lies before the address that it
    /// returns to, and may end its function.
    pub(super) fn inside(&self) -> u64 {
        if self.exact { self.rip } else { self.rip.wrapping_sub(1) }
    }
}

/// The frames from the innermost out, and whether there are more than that.
pub(super) fn of(at: &Standing<'_>, symbols: &Symbols<'_>) -> (Vec<Frame>, bool) {
    let regs = &at.cpu.regs;
    let mut cursor = Cursor { rip: regs.rip, rsp: regs.rsp, rbp: regs.rbp, exact: true };
    let mut frames = vec![frame(at, symbols, &cursor, Found::Rip)];
    while let Some((next, found)) = outward(at, symbols, &cursor) {
        if frames.len() == DEEPEST {
            return (frames, true);
        }
        frames.push(frame(at, symbols, &next, found));
        // The stack grows down: a caller's part lies above, unless a handler has its own stack.
        if !next.exact && (next.rsp <= cursor.rsp || next.rip == 0) {
            break;
        }
        cursor = next;
    }
    (frames, false)
}

fn frame(at: &Standing<'_>, symbols: &Symbols<'_>, cursor: &Cursor, found: Found) -> Frame {
    let (rip, inside) = (cursor.rip, cursor.inside());
    let place = symbols.at(at.code.linear(inside)).map(|place| {
        let offset = place.offset + rip.wrapping_sub(inside);
        Place { offset, ..place }
    });
    Frame { rip, place, found }
}

/// One step out: to who called, or to what a handler interrupted.
fn outward(at: &Standing<'_>, symbols: &Symbols<'_>, cursor: &Cursor) -> Option<(Cursor, Found)> {
    let (next, found) = return_address(at, symbols, cursor)?;
    // An interrupt may come where a call returns to: its frame has more than that address. Outside
    // long mode arguments behind it may look the same.
    let may_be = found != Found::InterruptFrame
        && (at.cpu.mode() == Mode::Long || interrupted::is_handler(at, symbols, cursor));
    let slot = next.rsp.wrapping_sub(width(at));
    match interrupted::frame(at, slot, cursor).filter(|_| may_be) {
        Some(frame) => Some((Cursor { rbp: next.rbp, ..frame }, Found::InterruptFrame)),
        None => Some((next, found)),
    }
}

fn return_address(
    at: &Standing<'_>,
    symbols: &Symbols<'_>,
    cursor: &Cursor,
) -> Option<(Cursor, Found)> {
    if is_fresh(at, symbols, cursor)
        && let Some(next) = top_of_stack(at, cursor)
    {
        return Some((next, Found::TopOfStack));
    }
    let by_table = unwind::caller(at, symbols, cursor);
    if let Some(next) = by_table.filter(|next| at.code.follows_call(next.rip)) {
        return Some((next, Found::UnwindTable));
    }
    let inside = cursor.inside();
    let function = symbols.at(at.code.linear(inside));
    let start = function.map(|place| inside.wrapping_sub(place.offset));
    if let Some(next) = start.and_then(|start| frameless(at, start, cursor)) {
        let is_top = next.rsp == cursor.rsp.wrapping_add(width(at));
        return Some((next, if is_top { Found::TopOfStack } else { Found::OnStack }));
    }
    // A handler without a frame of its own has the frame pointer of what it interrupted.
    if let Some(next) = interrupted::by_handler(at, symbols, cursor) {
        return Some((next, Found::InterruptFrame));
    }
    if let Some(next) = frame_pointer(at, cursor) {
        return Some((next, Found::FramePointer));
    }
    let next = top_of_stack(at, cursor).filter(|_| cursor.exact)?;
    Some((next, Found::TopOfStack))
}

pub(super) fn width(at: &Standing<'_>) -> u64 {
    match at.cpu.mode() {
        Mode::Long => 8,
        Mode::Protected => 4,
        Mode::Real => 2,
    }
}

/// A value on the stack.
pub(super) fn stack_value(at: &Standing<'_>, pointer: u64) -> Option<u64> {
    let base = if at.cpu.mode() == Mode::Long { 0 } else { at.cpu.ss.base };
    at.space.peek_number(base.wrapping_add(pointer), width(at) as usize)
}

/// By the return address on top of the stack, if it looks like one.
fn top_of_stack(at: &Standing<'_>, cursor: &Cursor) -> Option<Cursor> {
    let rip = stack_value(at, cursor.rsp).filter(|rip| at.code.follows_call(*rip))?;
    Some(cursor.caller(rip, cursor.rsp.wrapping_add(width(at))))
}

/// Is it in a function that has not made its frame yet: where no code is (a call through a bad
/// pointer), or at the function's first instruction?
fn is_fresh(at: &Standing<'_>, symbols: &Symbols<'_>, cursor: &Cursor) -> bool {
    let at_start = || symbols.at(at.code.linear(cursor.rip)).is_some_and(|place| place.offset == 0);
    cursor.exact && (at_start() || at.fetch(cursor.rip, 1).is_err())
}

/// A function that makes no frame leaves RBP as its caller's, by which the caller would be passed
/// over. Its return address is the next one on the stack that follows a call of this very function,
/// which begins at `start`.
pub(super) fn frameless(at: &Standing<'_>, start: u64, cursor: &Cursor) -> Option<Cursor> {
    let marks = |it: &Instruction| matches!(it.mnemonic(), Mnemonic::Endbr64 | Mnemonic::Endbr32);
    let mut first = at.code.at(start)?;
    if marks(&first) {
        first = at.code.at(first.next_ip())?;
    }
    let makes_frame =
        first.mnemonic() == Mnemonic::Push && first.op0_register().full_register() == Register::RBP;
    if makes_frame {
        return None;
    }
    let behind = |n: u64| {
        let pointer = cursor.rsp.wrapping_add(n * width(at));
        Some(cursor.caller(stack_value(at, pointer)?, pointer.wrapping_add(width(at))))
    };
    let is_own = |next: &Cursor| at.code.call_target(next.rip) == Some(start);
    (0..LOOKED_AT).map_while(behind).find(is_own)
}

fn frame_pointer(at: &Standing<'_>, cursor: &Cursor) -> Option<Cursor> {
    let width = width(at);
    // A frame that is not above the stack pointer is none of this stack's.
    if cursor.rbp == 0 || cursor.rbp < cursor.rsp || !cursor.rbp.is_multiple_of(width) {
        return None;
    }
    let rbp = stack_value(at, cursor.rbp)?;
    let rip = stack_value(at, cursor.rbp.wrapping_add(width))?;
    let rsp = cursor.rbp.wrapping_add(2 * width);
    at.code.follows_call(rip).then_some(Cursor { rbp, ..cursor.caller(rip, rsp) })
}
