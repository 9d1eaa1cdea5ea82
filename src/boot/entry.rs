//! The flat entry states that several protocols share: descriptor table, page tables, stack.

use super::Error;
use super::place::{Placer, Room};
use crate::mem::{GuestAddress, PAGE_SIZE, Range, layout};
use crate::x86::paging::PageTables;
use crate::x86::{CpuInit, DescriptorTable, Mode, Segment};

/// Selector of the code segment, where the protocol leaves the choice.
pub(super) const CODE: u16 = 0x08;
/// Selector of the data segment, where the protocol leaves the choice.
pub(super) const DATA: u16 = 0x10;
const STACK_SIZE: u64 = 16 << 10;
/// One top table, one for 512 GiB, four for 4 GiB in large pages.
const IDENTITY_PAGES: u64 = 6;

/// Part of an image with a linear address of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapping {
    pub(super) virt: u64,
    pub(super) phys: u64,
    pub(super) len: u64,
}

impl Mapping {
    /// Is it where the identity mapping of the low 4 GiB has it already?
    fn is_identity(&self) -> bool {
        self.virt == self.phys && self.phys + self.len <= layout::HOLE_END
    }

    /// What of the identity-mapped 4 GiB it hides.
    fn hides(&self) -> Option<Range> {
        let start = self.virt & !(PAGE_SIZE - 1);
        let end = self.virt.saturating_add(self.len).min(layout::HOLE_END);
        let end = end.next_multiple_of(PAGE_SIZE);
        (!self.is_identity() && start < end).then_some(Range { start, end })
    }

    /// The most tables it can need: at each level one for each full span, one at either end.
    fn pages(&self) -> u64 {
        if self.is_identity() { 0 } else { (self.len >> 21) + (self.len >> 30) + 6 }
    }
}

/// Flat protected mode, paging off, with a descriptor table in guest memory.
pub(super) fn protected(
    placer: &mut Placer<'_>,
    entry: u32,
    code: u16,
    data: u16,
) -> Result<CpuInit, Error> {
    let mut cpu = CpuInit::protected(entry, code, data);
    cpu.gdt = descriptors(placer, &[cpu.cs, cpu.data])?;
    Ok(cpu)
}

/// Long mode with the low 4 GiB identity-mapped, but for what `mappings` put there.
pub(super) fn long(
    placer: &mut Placer<'_>,
    entry: u64,
    selectors: (u16, u16),
    mappings: &[Mapping],
) -> Result<CpuInit, Error> {
    mappings.iter().filter_map(Mapping::hides).for_each(|range| placer.avoid(range));
    let pages = IDENTITY_PAGES + mappings.iter().map(Mapping::pages).sum::<u64>();
    let at = placer.find("page tables", pages * PAGE_SIZE, PAGE_SIZE, Room::Block)?;
    let mut tables = PageTables::new(placer.memory(), GuestAddress(at.start), pages);
    for mapping in mappings.iter().filter(|mapping| !mapping.is_identity()) {
        tables.map(mapping.virt, mapping.phys, mapping.len)?;
    }
    tables.fill_identity(layout::HOLE_END >> 30)?;
    let mut cpu = CpuInit::long(entry, tables.root(), selectors.0, selectors.1);
    cpu.gdt = descriptors(placer, &[cpu.cs, cpu.data])?;
    Ok(cpu)
}

/// A table that holds each of `segments` at its own selector.
fn descriptors(placer: &mut Placer<'_>, segments: &[Segment]) -> Result<DescriptorTable, Error> {
    let entries = segments.iter().map(|s| s.selector / 8 + 1).max().unwrap_or(1);
    let mut table = vec![0; usize::from(entries) * 8];
    for segment in segments {
        let at = usize::from(segment.selector & !7);
        table[at..at + 8].copy_from_slice(&segment.descriptor().to_le_bytes());
    }
    let base = placer.put("descriptor table", &table, 8, Room::Block)?.start;
    Ok(DescriptorTable { base, limit: entries * 8 - 1 })
}

/// Gives `cpu` a stack as a C function finds it at its first instruction, called with
/// `argument` by nobody: a return address of 0 at the stack pointer, and the pointer where
/// the System V ABI wants it (i386 psABI 2.2.2: ESP + 4 is a multiple of 16, the argument
/// there; x86-64 psABI 3.2.2: RSP + 8 is a multiple of 16, the argument in RDI).
pub(super) fn call(placer: &mut Placer<'_>, cpu: &mut CpuInit, argument: u64) -> Result<(), Error> {
    let top = placer.find("stack", STACK_SIZE, 16, Room::Block)?.end - 16;
    if cpu.mode == Mode::Protected {
        placer.write("stack", top, &(argument as u32).to_le_bytes())?;
        cpu.regs.rsp = top - 4;
    } else {
        cpu.regs.rsp = top - 8;
    }
    cpu.regs.rbx = argument;
    cpu.regs.rdi = argument;
    Ok(())
}
