//! The guest's memory: descriptor tables, page tables, stacks and the stubs that exceptions end
//! in, all below 64 KiB so that 16-bit code reaches them. Called by `lab`.
//!
//! The values are chosen to be nobody else's: a descriptor table, a task register or a selector
//! that the guest sees is its own only where it could not be the host's too.

use crate::mem::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};
use crate::x86::Segment;

/// Bytes of RAM.
pub const RAM: u64 = 8 << 20;
/// A guest-physical address where there is no memory, mapped by the page tables.
pub const NOWHERE: u64 = 0x1000_0000;

/// Global descriptor table.
pub const GDT: u64 = 0x1000;
/// Interrupt descriptor table of protected mode.
pub const IDT_32: u64 = 0x2000;
/// Interrupt descriptor table of long mode.
pub const IDT_64: u64 = 0x2800;
/// Task state segment, of whichever mode.
pub const TSS: u64 = 0x4000;
/// Local descriptor table.
const LDT: u64 = 0x5000;
/// The stubs that gates lead to, [`STUB_SIZE`] bytes each.
pub const STUBS: u64 = 0x6000;
/// Where a vCPU starts.
pub const LAUNCH: u64 = 0x7000;
/// What instructions read and write.
pub const SCRATCH: u64 = 0x7800;
/// Where kvmclock puts its page's 32 bytes, behind an operand.
pub const CLOCK_PAGE: u64 = 0x7880;
/// Where a timed run keeps the low half of the TSC at its start.
pub const START_TIME: u64 = 0x7900;
/// In an XSAVE area: its form, which XRSTORS wants compacted (Intel SDM Vol. 1, 13.4.2).
const XCOMP_BV: u64 = 512 + 8;
/// The code under test.
pub const PROBE: u64 = 0x8000;
/// The stack under test: what it pops lies above, what it pushes goes below.
pub const STACK: u64 = 0xA000;
/// Bytes above [`STACK`] that may be popped.
#[cfg(test)]
pub const STACK_ABOVE: u64 = 0x1800;
/// Stacks of rings 0, 1 and 2 (their tops), beside the one under test.
pub const STACK_0: u64 = 0xD000;
const STACK_1: u64 = 0xE000;
const STACK_2: u64 = 0xF000;
/// Page tables of long mode: the first GiB, identity-mapped by pages of 2 MiB, for all rings.
pub const PAGE_TABLES: u64 = 0x2_0000;

/// Bytes of a stub. It writes to [`STUB_PORT`], and RIP tells which one it was.
pub const STUB_SIZE: u64 = 8;
/// Nobody else's port. An HLT would not come to user space where KVM has the local APIC.
pub const STUB_PORT: u16 = 0x81;
/// The vector that INT n is tried with; its gate is open to ring 3.
pub const GATE: u8 = 0x40;
/// Gates in each interrupt descriptor table.
pub const GATES: u16 = GATE as u16 + 1;
/// The stub that SYSCALL, SYSENTER and the call gate lead to.
pub const LANDING_NUMBER: u64 = 0x48;
/// Its address.
pub const LANDING: u64 = STUBS + LANDING_NUMBER * STUB_SIZE;

/// 32-bit code of rings 0 to 3.
pub const CODE_32: [u16; 4] = [0x08, 0x18, 0x28, 0x38];
/// Data and stack of rings 0 to 3.
pub const DATA: [u16; 4] = [0x10, 0x20, 0x30, 0x40];
/// 64-bit code of ring 0; ring 0's data follow, as SYSCALL wants them.
pub const CODE_64: u16 = 0x48;
/// What SYSRET counts from: 32-bit code, data, 64-bit code of ring 3.
pub const SYSRET_BASE: u16 = 0x58;
/// 64-bit code of ring 3.
pub const USER_CODE_64: u16 = 0x68;
/// What LAR, LSL and VERW look at. Linux has the number of its processor in the limit of this
/// entry (GDT_ENTRY_CPUNODE), read-only; here it is writable, of a limit of its own.
pub const LIMITED: u16 = 0x78;
/// The limit of [`LIMITED`], in bytes.
pub const LIMITED_LIMIT: u32 = 0x7_1234;
/// Task register in protected mode. Linux has 0x40.
pub const TASK_32: u16 = 0x80;
/// Task register in long mode.
pub const TASK_64: u16 = 0x90;
/// Local descriptor table register. Linux has 0.
pub const LOCAL: u16 = 0xA0;
/// A task that is not busy, for LTR.
pub const SPARE_TASK: u16 = 0xB0;
/// A call gate for ring 3, to [`LANDING`] in ring 0.
pub const CALL_GATE: u16 = 0xC0;
/// Data of ring 3 beyond the end of Linux's table.
pub const BEYOND: u16 = 0xD0;
/// Last byte of the table.
pub const GDT_LIMIT: u16 = 0xD7;

/// Vectors with an error code (Intel SDM Vol. 3A, table 6-1).
pub fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// The segment of the local descriptor table.
pub fn ldt() -> Segment {
    Segment { selector: LOCAL, present: true, base: LDT, limit: 0x2F, ..Segment::no_ldt() }
}

const fn ring(segment: Segment, dpl: u8) -> u64 {
    Segment { dpl, ..segment }.descriptor()
}

/// Not busy: bit 1 of the type.
const fn available(base: u64) -> u64 {
    Segment { base, kind: 0x9, ..Segment::task(0) }.descriptor()
}

/// A gate's low eight bytes: offset, selector, type, DPL, present (Intel SDM Vol. 3A, figures
/// 5-8 and 6-2).
const fn gate(selector: u16, offset: u64, kind: u64, dpl: u64) -> u64 {
    (offset & 0xFFFF) | (selector as u64) << 16 | (kind | dpl << 5 | 0x80) << 40
}

/// A gate of an interrupt or a call, 32-bit or 64-bit (the same numbers).
const INTERRUPT_GATE: u64 = 0xE;
const CALL_GATE_KIND: u64 = 0xC;

/// The global descriptor table; a gate leads to 32-bit or 64-bit code, as the mode is.
fn gdt(long: bool) -> [u64; 27] {
    let mut gdt = [0; 27];
    let mut put = |selector: u16, entry| gdt[usize::from(selector) / 8] = entry;
    for n in 0..4 {
        put(CODE_32[n], ring(Segment::code32(0), n as u8));
        put(DATA[n], ring(Segment::data32(0), n as u8));
    }
    put(CODE_64, ring(Segment::code64(0), 0));
    put(CODE_64 + 8, ring(Segment::data32(0), 0));
    put(SYSRET_BASE, ring(Segment::code32(0), 3));
    put(SYSRET_BASE + 8, ring(Segment::data32(0), 3));
    put(USER_CODE_64, ring(Segment::code64(0), 3));
    put(LIMITED, ring(Segment { limit: LIMITED_LIMIT, ..Segment::data32(0) }, 3));
    put(TASK_32, available(TSS)); // the launch code loads it
    put(TASK_64, Segment { base: TSS, ..Segment::task(0) }.descriptor());
    put(LOCAL, ldt().descriptor());
    put(SPARE_TASK, available(TSS));
    put(CALL_GATE, gate(if long { CODE_64 } else { CODE_32[0] }, LANDING, CALL_GATE_KIND, 3));
    put(BEYOND, ring(Segment::data32(0), 3));
    gdt
}

/// Is the vector one that a program may reach by an instruction of its own?
fn gate_dpl(vector: u64) -> u64 {
    if [3, 4, u64::from(GATE)].contains(&vector) { 3 } else { 0 }
}

/// Writes everything that does not depend on the code under test; each run starts from it.
pub fn write(memory: &GuestMemory, long: bool) -> Result<(), GuestMemoryError> {
    let put = |address: u64, value: u64| memory.write_obj(value, GuestAddress(address));
    for vector in 0..u64::from(GATES) {
        let stub = STUBS + vector * STUB_SIZE;
        memory.write_obj(stub as u32, GuestAddress(vector * 4))?; // segment 0
        let dpl = gate_dpl(vector);
        put(IDT_32 + vector * 8, gate(CODE_32[0], stub, INTERRUPT_GATE, dpl))?;
        put(IDT_64 + vector * 16, gate(CODE_64, stub, INTERRUPT_GATE, dpl))?;
        put(IDT_64 + vector * 16 + 8, 0)?;
    }
    // out to the port, jmp back to it.
    let stub = u64::from_le_bytes([0xE6, STUB_PORT as u8, 0xEB, 0xFC, 0xF4, 0xF4, 0xF4, 0xF4]);
    (0..LANDING_NUMBER).try_for_each(|number| put(STUBS + number * STUB_SIZE, stub))?;
    // hlt, which no ring but 0 may, whatever its IOPL.
    put(LANDING, u64::from_le_bytes([0xF4; 8]))?;
    for (index, entry) in gdt(long).into_iter().enumerate() {
        put(GDT + index as u64 * 8, entry)?;
    }
    put(LDT, 0)?;
    put(SCRATCH + XCOMP_BV, 1 << 63)?;
    task(memory, long)
}

/// The task state segment: the stacks of the rings, and no I/O permission bitmap within its
/// limit (Intel SDM Vol. 3A, figures 8-2 and 8-11).
fn task(memory: &GuestMemory, long: bool) -> Result<(), GuestMemoryError> {
    memory.write_slice(&[0; 0x68], GuestAddress(TSS))?;
    for (n, stack) in [STACK_0, STACK_1, STACK_2].into_iter().enumerate() {
        let n = n as u64;
        if long {
            memory.write_obj(stack, GuestAddress(TSS + 4 + n * 8))?;
        } else {
            memory.write_obj(stack as u32, GuestAddress(TSS + 4 + n * 8))?;
            memory
                .write_obj(u32::from(DATA[n as usize]) | n as u32, GuestAddress(TSS + 8 + n * 8))?;
        }
    }
    memory.write_obj(0x68_u16, GuestAddress(TSS + 0x66))
}

/// Page tables for long mode; they stay as they are.
pub fn write_page_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    const TABLE: u64 = 0b111; // present, writable, user
    const PAGE_2M: u64 = 0b1000_0111;
    memory.write_obj((PAGE_TABLES + 0x1000) | TABLE, GuestAddress(PAGE_TABLES))?;
    memory.write_obj((PAGE_TABLES + 0x2000) | TABLE, GuestAddress(PAGE_TABLES + 0x1000))?;
    (0..512).try_for_each(|n: u64| {
        memory.write_obj(n << 21 | PAGE_2M, GuestAddress(PAGE_TABLES + 0x2000 + n * 8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_do_not_overlap() {
        let pieces = [
            (0, u64::from(GATES) * 4),
            (GDT, u64::from(GDT_LIMIT) + 1),
            (IDT_32, u64::from(GATES) * 8),
            (IDT_64, u64::from(GATES) * 16),
            (TSS, 0x68),
            (LDT, 0x30),
            (STUBS, (LANDING_NUMBER + 1) * STUB_SIZE),
            (LAUNCH, 0x400),
            (SCRATCH, 0x108),
            (PROBE, 0x800),
            (STACK - 0x800, 0x800 + STACK_ABOVE),
            (STACK_0 - 0x800, 0x800),
            (STACK_1 - 0x800, 0x800),
            (STACK_2 - 0x800, 0x800),
            (PAGE_TABLES, 0x3000),
        ];
        for pair in pieces.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }

    #[test]
    fn gates_have_the_well_known_values() {
        assert_eq!(gate(0x08, 0x6000, INTERRUPT_GATE, 0), 0x0000_8E00_0008_6000);
        assert_eq!(gate(0x48, 0x6200, INTERRUPT_GATE, 3), 0x0000_EE00_0048_6200);
        assert_eq!(available(0x4000), 0x0000_8900_4000_0067);
    }

    #[test]
    fn selectors_are_not_those_of_linux() {
        const { assert!(TASK_32 != 0x40 && TASK_64 != 0x40 && LOCAL != 0) };
        assert_eq!(usize::from(GDT_LIMIT) + 1, gdt(false).len() * 8);
    }
}
