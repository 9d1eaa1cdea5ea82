//! `--core`: a dead guest's memory and registers as an ELF core file (System V gABI,
//! chapters 4 and 5; the notes as Linux writes them).
//!
//! The file holds guest-physical memory once, with holes where no page was touched. The
//! segments of the linear addresses that the page tables map point into it, and so does one
//! for all of physical memory: address P is at [`PHYSICAL`] + P.

mod notes;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmm_sys_util::seek_hole::SeekHole;

use crate::inspect::walk::AddressSpace;
use crate::inspect::{Cpu, Mapping, Registers, mappings};
use crate::mem::{GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, PAGE_SIZE};

/// Where physical memory lies in the core: no canonical address, so no guest's own.
pub const PHYSICAL: u64 = 1 << 56;

const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;

/// A piece of the file.
struct Segment {
    linear: u64,
    physical: u64,
    offset: u64,
    len: u64,
}

/// Writes the file whole or not at all.
pub(super) fn write(path: &Path, cpus: &[Cpu], memory: &GuestMemory) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".part{}", std::process::id()));
    let written = File::create(&part).and_then(|file| fill(&file, cpus, memory));
    let written = written.and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part); // the first error is the one to tell
    }
    written
}

fn fill(file: &File, cpus: &[Cpu], memory: &GuestMemory) -> io::Result<()> {
    let notes = notes::notes(cpus);
    let ranges = ranges(cpus, memory);
    let regions: Vec<_> = memory.iter().map(|it| (it.start_addr().0, it.len())).collect();
    let headers = 1 + ranges.len() as u64 + regions.len() as u64;
    let notes_at = HEADER + headers * PROGRAM_HEADER;
    let memory_at = (notes_at + notes.len() as u64).next_multiple_of(PAGE_SIZE);
    let place = |physical| offset(&regions, physical).map(|at| memory_at + at);
    let mut segments: Vec<Segment> = Vec::new();
    for Mapping { linear, physical, len } in ranges {
        let Some(offset) = place(physical) else { continue };
        segments.push(Segment { linear, physical, offset, len });
    }
    for &(physical, len) in &regions {
        let Some(offset) = place(physical) else { continue };
        segments.push(Segment { linear: PHYSICAL + physical, physical, offset, len });
    }
    let mut head = header(segments.len() as u16 + 1);
    head.extend(program_header(
        PT_NOTE,
        &Segment { linear: 0, physical: 0, offset: notes_at, len: notes.len() as u64 },
    ));
    head.extend(segments.iter().flat_map(|segment| program_header(PT_LOAD, segment)));
    file.write_all_at(&head, 0)?;
    file.write_all_at(&notes, notes_at)?;
    let total: u64 = regions.iter().map(|(_, len)| len).sum();
    file.set_len(memory_at + total)?;
    let mut at = memory_at;
    for region in memory.iter() {
        copy(region, file, at)?;
        at += region.len();
    }
    Ok(())
}

/// What the page tables of the vCPU that died map; where paging is off, or the state lost,
/// linear is physical.
fn ranges(cpus: &[Cpu], memory: &GuestMemory) -> Vec<Mapping> {
    let chosen = cpus.iter().find(|cpu| cpu.died).or(cpus.first());
    let mut ranges = match chosen.map(|cpu| (cpu, &cpu.registers)) {
        Some((cpu, Registers::Whole(state))) => {
            mappings(&AddressSpace::new(memory, state, cpu.physical_bits))
        }
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

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// The header of a 64-bit core for x86-64, whatever mode the guest was in: gdb's register
/// file has room for all.
fn header(program_headers: u16) -> Vec<u8> {
    const ET_CORE: u16 = 4;
    const EM_X86_64: u16 = 62;
    let mut bytes = b"\x7FELF\x02\x01\x01".to_vec(); // 64-bit, little-endian, version 1
    bytes.resize(16, 0);
    bytes.extend(ET_CORE.to_le_bytes());
    bytes.extend(EM_X86_64.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes()); // no entry
    bytes.extend(HEADER.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes()); // no sections
    bytes.extend(0_u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM_HEADER as u16, program_headers, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    bytes
}

fn program_header(kind: u32, segment: &Segment) -> Vec<u8> {
    let (rights, align) = if kind == PT_LOAD { (7_u32, PAGE_SIZE) } else { (0, 4) };
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(rights.to_le_bytes());
    let Segment { linear, physical, offset, len } = *segment;
    for word in [offset, linear, physical, len, len, align] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}
