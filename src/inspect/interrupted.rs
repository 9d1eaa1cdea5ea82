//! Out of a handler to what it interrupted: by the frame that the processor pushed (Intel SDM
//! Vol. 3A 6.12.1, 6.14.2).

use iced_x86::Mnemonic;

use super::backtrace::{Cursor, stack_value, width};
use super::delivery;
use super::descriptor;
use super::fault::Standing;
use super::symbols::Symbols;
use crate::x86::{Efer, Mode, Rflags};

/// Words of the stack that are looked at for the frame.
const LOOKED_AT: u64 = 256;

/// Instructions ahead that are looked at for an IRET.
const AHEAD: usize = 128;

/// RFLAGS' bits that are there.
const FLAGS: Rflags = Rflags::from_bits_retain(0x3F_7FD7);

/// What was interrupted where a handler runs at `cursor`: the next frame on its stack. Real mode's
/// frames cannot be told from other words.
pub(super) fn by_handler(
    at: &Standing<'_>,
    symbols: &Symbols<'_>,
    cursor: &Cursor,
) -> Option<Cursor> {
    if !is_handler(at, symbols, cursor) {
        return None;
    }
    let mut pointers = (0..LOOKED_AT).map(|n| cursor.rsp.wrapping_add(n * width(at)));
    pointers.find_map(|pointer| frame(at, pointer, cursor))
}

/// Is what runs at `cursor` the code of a handler?
pub(super) fn is_handler(at: &Standing<'_>, symbols: &Symbols<'_>, cursor: &Cursor) -> bool {
    returns_by_iret(at, cursor.rip) || is_entered_by_gate(at, symbols, cursor)
}

/// What was interrupted, if the frame's lowest word lies at `pointer`: the processor's own rules
/// for a frame hold for what lies there.
pub(super) fn frame(at: &Standing<'_>, pointer: u64, cursor: &Cursor) -> Option<Cursor> {
    let long = match at.cpu.mode() {
        Mode::Long => true,
        Mode::Protected => false,
        Mode::Real => return None,
    };
    // Five words below a multiple of 16.
    if long && pointer & 15 != 8 {
        return None;
    }
    let word = |n: u64| stack_value(at, pointer.wrapping_add(n * width(at)));
    let (rip, selector, flags) = (word(0)?, word(1)?, Rflags::from_bits_retain(word(2)?));
    let ring = (selector & 3) as u8;
    let is_flags = FLAGS.contains(flags)
        && flags.contains(Rflags::ONE)
        && (long || !flags.contains(Rflags::VM));
    if !is_flags || ring < at.cpu.ring() || !is_segment(at, selector, true) {
        return None;
    }
    let switched = long || ring > at.cpu.ring();
    let rsp = if switched { word(3)? } else { pointer.wrapping_add(3 * width(at)) };
    let is_stack = !switched || {
        let ss = word(4)?;
        // A null SS is fine in 64-bit code below ring 3.
        is_segment(at, ss, false) || long && ss < 3
    };
    let is_address = |it| !long || at.space.is_canonical(it);
    if !is_stack || !is_address(rip) || !is_address(rsp) {
        return None;
    }
    // A handler that makes a frame of its own has saved RBP in it.
    let saved = (cursor.rsp..pointer).contains(&cursor.rbp);
    let rbp = if saved { stack_value(at, cursor.rbp)? } else { cursor.rbp };
    Some(Cursor { rip, rsp, rbp, exact: true })
}

/// Is this selector one of code, or of a stack, of its own ring?
fn is_segment(at: &Standing<'_>, selector: u64, code: bool) -> bool {
    // Only a selector's 16 bits are its own in protected mode.
    let selector = if at.cpu.mode() == Mode::Long { selector } else { selector & 0xFFFF };
    let Ok(selector) = u16::try_from(selector) else { return false };
    descriptor::lookup(&at.space, at.cpu, selector).is_ok_and(|it| {
        let fits = if code { it.is_code() } else { it.is_writable_data() };
        let own = it.is_conforming() || u16::from(it.dpl()) == selector & 3;
        fits && own && it.present()
    })
}

/// Does the code from `rip` on come to an IRET before it comes to another return?
fn returns_by_iret(at: &Standing<'_>, mut rip: u64) -> bool {
    for _ in 0..AHEAD {
        let Some(it) = at.code.at(rip).filter(|it| !it.is_invalid()) else { return false };
        match it.mnemonic() {
            Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => return true,
            Mnemonic::Ret | Mnemonic::Retf => return false,
            _ if it.is_jmp_short_or_near() => rip = it.near_branch_target(),
            _ => rip = it.next_ip(),
        }
    }
    false
}

/// Does a gate of the IDT lead to the start of the function at `cursor`?
fn is_entered_by_gate(at: &Standing<'_>, symbols: &Symbols<'_>, cursor: &Cursor) -> bool {
    let inside = at.code.linear(cursor.inside());
    let start = symbols.function_start(inside).unwrap_or(inside);
    let long = at.cpu.efer.contains(Efer::LMA);
    (0..=255).any(|vector| {
        let gate = delivery::read_gate(&at.space, at.cpu, vector, long);
        gate.is_ok_and(|gate| gate.present && at.code.linear(gate.offset) == start)
    })
}
