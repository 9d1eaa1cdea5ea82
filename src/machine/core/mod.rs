//! `--core`: a dead guest's memory and registers as an ELF core file (System V gABI,
//! chapters 4 and 5; the notes as Linux writes them).
//!
//! The file holds guest-physical memory once, with holes where no page was touched. The
//! segments of the linear addresses that the page tables map point into it, and so does one
//! for all of physical memory: address P is at [`PHYSICAL`] + P.

mod elf;
mod notes;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmm_sys_util::seek_hole::SeekHole;

use self::elf::{Class, Kind, Segment};
use super::whole::fill_whole;
use crate::inspect::walk::AddressSpace;
use crate::inspect::{Cpu, Mapping, Registers, mappings};
use crate::mem::{GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, PAGE_SIZE};
use crate::x86::Efer;

/// Where physical memory lies in a 64-bit core: no canonical address, so no guest's own.
pub const PHYSICAL: u64 = 1 << 56;

/// Writes the file whole or not at all; `files` are those that hold the guest's code.
pub(super) fn write<'a>(
    path: &Path,
    cpus: &[Cpu],
    memory: &GuestMemory,
    files: impl IntoIterator<Item = &'a [u8]>,
) -> io::Result<()> {
    let class = class(cpus, files);
    fill_whole(path, |file| fill(file, class, cpus, memory))
}

fn fill(file: &File, class: Class, cpus: &[Cpu], memory: &GuestMemory) -> io::Result<()> {
    let regions: Vec<_> = memory.iter().map(|it| (it.start_addr().0, it.len())).collect();
    let notes = notes::notes(class, cpus);
    let mut loads = ranges(cpus, memory);
    if class == Class::Elf64 {
        let physical = |&(physical, len)| Mapping { linear: PHYSICAL + physical, physical, len };
        loads.extend(regions.iter().map(physical));
    }
    let (header, entry) = class.sizes();
    let notes_at = header + (1 + loads.len() as u64) * entry;
    let memory_at = (notes_at + notes.len() as u64).next_multiple_of(PAGE_SIZE);
    let note = Segment {
        kind: Kind::Note,
        linear: 0,
        physical: 0,
        offset: notes_at,
        len: notes.len() as u64,
    };
    let load = |Mapping { linear, physical, len }| {
        let offset = memory_at + offset(&regions, physical)?;
        Some(Segment { kind: Kind::Load, linear, physical, offset, len })
    };
    let loads = loads.into_iter().filter_map(load).filter(|segment| class.holds(segment));
    let segments: Vec<_> = [note].into_iter().chain(loads).collect();
    let mut head = class.header(segments.len() as u16);
    head.extend(segments.iter().flat_map(|segment| class.program_header(segment)));
    file.write_all_at(&head, 0)?;
    file.write_all_at(&notes, notes_at)?;
    file.set_len(memory_at + regions.iter().map(|(_, len)| len).sum::<u64>())?;
    let mut at = memory_at;
    for region in memory.iter() {
        copy(region, file, at)?;
        at += region.len();
    }
    Ok(())
}

/// The vCPU that died, else the first.
fn chosen(cpus: &[Cpu]) -> Option<&Cpu> {
    cpus.iter().find(|cpu| cpu.died).or(cpus.first())
}

/// The class of the guest's first ELF file, which a debugger is given beside the core; a 32-bit
/// one has no room for the registers of long mode.
fn class<'a>(cpus: &[Cpu], files: impl IntoIterator<Item = &'a [u8]>) -> Class {
    let is_long = match chosen(cpus).map(|cpu| &cpu.registers) {
        Some(Registers::Whole(state)) => state.efer.contains(Efer::LMA),
        _ => true, // lost
    };
    let first = files.into_iter().find_map(elf::class_of);
    if is_long { Class::Elf64 } else { first.unwrap_or(Class::Elf64) }
}

/// Is the guest's first ELF file one of 32 bits? A debugger that is given it takes the guest for
/// an i386.
pub(super) fn is_32_bit<'a>(files: impl IntoIterator<Item = &'a [u8]>) -> bool {
    files.into_iter().find_map(elf::class_of) == Some(Class::Elf32)
}

/// What the page tables of the vCPU that died map; where paging is off, or the state lost,
/// linear is physical.
fn ranges(cpus: &[Cpu], memory: &GuestMemory) -> Vec<Mapping> {
    let mut ranges = match chosen(cpus).map(|cpu| &cpu.registers) {
        Some(Registers::Whole(state)) => mappings(&AddressSpace::new(memory, state)),
        _ => memory
            .iter()
            .map(|it| Mapping {
                linear: it.start_addr().0,
                physical: it.start_addr().0,
                len: it.len(),
            })
            .collect(),
    };
    // A large page may reach beyond the memory that it begins in.
    for range in &mut ranges {
        if let Some(region) = memory.find_region(GuestAddress(range.physical)) {
            range.len = range.len.min(region.start_addr().0 + region.len() - range.physical);
        }
    }
    ranges
}

/// Where a physical address lies among the regions, one behind the other.
fn offset(regions: &[(u64, u64)], physical: u64) -> Option<u64> {
    let mut before = 0;
    for (start, len) in regions {
        if (*start..start + len).contains(&physical) {
            return Some(before + physical - start);
        }
        before += len;
    }
    None
}

/// Copies the pages that were touched.
fn copy(region: &impl GuestMemoryRegion, to: &File, at: u64) -> io::Result<()> {
    let Some(from) = region.file_offset() else { return Ok(()) };
    let mut file = from.file().try_clone()?;
    let (start, end) = (from.start(), from.start() + region.len());
    let mut chunk = vec![0; 1 << 20];
    let mut next = start;
    while let Some(data) = file.seek_data(next)?.filter(|data| *data < end) {
        let hole = file.seek_hole(data)?.unwrap_or(end).min(end);
        next = data;
        while next < hole {
            let len = chunk.len().min((hole - next) as usize);
            file.read_exact_at(&mut chunk[..len], next)?;
            write_touched(&chunk[..len], to, at + next - start)?;
            next += len as u64;
        }
        if hole == data {
            break;
        }
    }
    Ok(())
}

/// Pages of zeros stay holes.
fn write_touched(chunk: &[u8], to: &File, at: u64) -> io::Result<()> {
    for (n, page) in chunk.chunks(PAGE_SIZE as usize).enumerate() {
        if page.iter().any(|byte| *byte != 0) {
            to.write_all_at(page, at + n as u64 * PAGE_SIZE)?;
        }
    }
    Ok(())
}
