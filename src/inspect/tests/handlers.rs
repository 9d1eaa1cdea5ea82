//! Backtraces out of handlers.

use super::super::Found;
use super::*;

const HANDLER: u64 = 0x8100;

/// A vCPU that stands in `handler`, which interrupted CODE + 2, behind a call; `frame` are the words
/// at the top of its stack.
fn in_handler(handler: &[u8], frame: &[u64]) -> Vec<(u64, Found)> {
    let (memory, mut state) = long_mode(&[0xFF, 0xD0, 0xEB, 0xFE]); // call rax; jmp $
    memory.write_slice(handler, GuestAddress(HANDLER)).unwrap();
    gate(&memory, 14, 8, HANDLER, 0x8E);
    state.regs.rip = HANDLER;
    // Six words below a multiple of 16: an error code and a frame.
    state.regs.rsp = 0x9000 - 8 * frame.len() as u64;
    for (n, word) in frame.iter().enumerate() {
        put(&memory, state.regs.rsp + 8 * n as u64, *word);
    }
    let page = autopsy(Ending::Halted, Source::End, &memory, vec![cpu(0, Registers::Whole(state))]);
    let frames = page.cpus[0].backtrace.iter();
    let frames: Vec<_> = frames.map(|it| (it.rip, it.found)).collect();
    let said = page.summary.contains("in a handler that interrupted 0x8002");
    assert_eq!(said, frames.iter().any(|it| it.1 == Found::InterruptFrame), "{}", page.summary);
    frames
}

const RETURNS: &[u8] = &[0x90, 0x59, 0x48, 0xCF]; // nop; pop rcx; iretq
const STAYS: &[u8] = &[0x90, 0xEB, 0xFD]; // nop; jmp -3

#[test]
fn a_handler_leads_to_what_it_interrupted() {
    let found = [(HANDLER, Found::Rip), (CODE + 2, Found::InterruptFrame)];
    // With an error code and without, below it saved registers.
    for handler in [RETURNS, STAYS] {
        assert_eq!(in_handler(handler, &[2, CODE + 2, 8, 0x202, 0x9000, 16]), found);
        assert_eq!(in_handler(handler, &[CODE + 2, 8, 0x202, 0x9000, 16]), found);
        assert_eq!(in_handler(handler, &[CODE + 2, 7, 3, CODE + 2, 8, 0x202, 0x9000, 0]), found);
    }
}

#[test]
fn what_the_processor_would_not_push_is_no_frame() {
    for (what, frame) in [
        ("not aligned", [CODE + 2, 8, 0x202, 0x9000, 16, 0]),
        ("no code segment", [2, CODE + 2, 16, 0x202, 0x9000, 16]),
        ("no such segment", [2, CODE + 2, 0x20, 0x202, 0x9000, 16]),
        ("no flags", [2, CODE + 2, 8, 0x200, 0x9000, 16]),
        ("reserved flags", [2, CODE + 2, 8, 0x20A, 0x9000, 16]),
        ("no stack segment", [2, CODE + 2, 8, 0x202, 0x9000, 8]),
        ("RSP not canonical", [2, CODE + 2, 8, 0x202, 1 << 60, 16]),
        ("RIP not canonical", [2, 1 << 60, 8, 0x202, 0x9000, 16]),
    ] {
        let found = in_handler(RETURNS, &frame);
        assert!(found.iter().all(|it| it.1 != Found::InterruptFrame), "{what}: {found:x?}");
    }
}

#[test]
fn only_handlers_interrupt() {
    let frame = [2, CODE + 2, 8, 0x202, 0x9000, 16];
    let (memory, mut state) = long_mode(&[0x90, 0xC3, 0x48, 0xCF]); // nop; ret; iretq
    state.regs.rsp = 0x9000 - 8 * 6;
    for (n, word) in frame.iter().enumerate() {
        put(&memory, state.regs.rsp + 8 * n as u64, *word);
    }
    let page = autopsy(Ending::Halted, Source::End, &memory, vec![cpu(0, Registers::Whole(state))]);
    assert_eq!(page.cpus[0].backtrace.len(), 1, "{page}");
}

#[test]
fn a_handler_of_protected_mode_leads_out_too() {
    let (memory, mut state) = long_mode(&[0x90, 0xCF]); // nop; iretd
    state.efer = Efer::empty();
    state.cr0 = Cr0::PE;
    state.cs = Segment { long: false, default_32: true, ..state.cs };
    let within = |frame: &[u32]| {
        let mut state = state.clone();
        state.regs.rsp = 0x9000 - 4 * frame.len() as u64;
        for (n, word) in frame.iter().enumerate() {
            put(&memory, state.regs.rsp + 4 * n as u64, *word);
        }
        let cpus = vec![cpu(0, Registers::Whole(state))];
        let page = autopsy(Ending::Halted, Source::End, &memory, cpus);
        page.cpus[0].backtrace.get(1).map(|it| (it.rip, it.found))
    };
    let found = Some((CODE + 0x40, Found::InterruptFrame));
    // The upper half of a pushed selector is nobody's.
    assert_eq!(within(&[5, CODE as u32 + 0x40, 0xABCD_0008, 0x202]), found);
    assert_eq!(within(&[5, CODE as u32 + 0x40, 11, 0x202, 0x7000, 0x13]), None); // DPL 0 in ring 3
    put(&memory, GDT + 8, Segment::code32(8).descriptor() | 3 << 45);
    assert_eq!(within(&[5, CODE as u32 + 0x40, 11, 0x202, 0x7000, 0x13]), None);
    put(&memory, GDT + 16, Segment::data32(16).descriptor() | 3 << 45);
    assert_eq!(within(&[5, CODE as u32 + 0x40, 11, 0x202, 0x7000, 0x13]), found);
    assert_eq!(within(&[5, CODE as u32 + 0x40, 11, 0x202, 0x7000, 0x0B]), None);
}

#[test]
fn the_frame_pointer_of_a_handler_without_a_frame_is_not_its_own() {
    let (memory, mut state) = long_mode(&[0xFF, 0xD0, 0xEB, 0xFE]); // call rax; jmp $
    memory.write_slice(RETURNS, GuestAddress(HANDLER)).unwrap();
    gate(&memory, 14, 8, HANDLER, 0x8E);
    // What was interrupted has a frame, and was called from CODE.
    (state.regs.rip, state.regs.rsp, state.regs.rbp) = (HANDLER, 0x8FD0, 0x9010);
    for (n, word) in [2, CODE + 0x40, 8, 0x202, 0x9000, 16].iter().enumerate() {
        put(&memory, state.regs.rsp + 8 * n as u64, *word);
    }
    put(&memory, 0x9018, CODE + 2);
    let page = autopsy(Ending::Halted, Source::End, &memory, vec![cpu(0, Registers::Whole(state))]);
    let frames: Vec<_> = page.cpus[0].backtrace.iter().map(|it| (it.rip, it.found)).collect();
    let found = [
        (HANDLER, Found::Rip),
        (CODE + 0x40, Found::InterruptFrame),
        (CODE + 2, Found::FramePointer),
    ];
    assert_eq!(frames, found);
}

#[test]
fn arguments_are_no_frame() {
    // call eax; nop; ret: a function that was called with 8 (a code selector) and 2.
    let (memory, mut state) = long_mode(&[0xFF, 0xD0, 0x90, 0xC3]);
    (state.efer, state.cr0) = (Efer::empty(), Cr0::PE);
    state.cs = Segment { long: false, default_32: true, ..state.cs };
    (state.regs.rip, state.regs.rsp, state.regs.rbp) = (CODE + 2, 0x8FF0, 0x8FF0);
    put(&memory, 0x8FF0, [0x9100_u32, CODE as u32 + 2, 8, 2]);
    let page = autopsy(Ending::Halted, Source::End, &memory, vec![cpu(0, Registers::Whole(state))]);
    assert_eq!(page.cpus[0].backtrace[1].found, Found::FramePointer);
}
