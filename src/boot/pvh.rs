//! PVH (Xen's `docs/misc/pvh.pandoc`): an ELF file whose note tells a 32-bit entry point.
//!
//! | | at entry |
//! |---|---|
//! | EBX | physical address of the `hvm_start_info`, version 1 |
//! | CR0 | PE, ET: paging off |
//! | CR4, EFER | 0 |
//! | CS | 32-bit code, base 0, limit 4 GiB (selector 0x08) |
//! | DS, ES, SS | 32-bit data, base 0, limit 4 GiB (selector 0x10; FS and GS too) |
//! | TR | 32-bit TSS, busy, base 0, limit 0x67 |
//! | EFLAGS | 2: interrupts off, no single step, no virtual-8086 mode |
//! | ESP, other registers | undefined by the document; 0 here |
//! | GDTR | undefined by the document; a table with the two segments here |
//!
//! The note is XEN_ELFNOTE_PHYS32_ENTRY (type 18, owner "Xen"); its descriptor is the
//! physical address of the entry point, in 32 or 64 bits. ELF32 and ELF64 are loaded alike,
//! each segment at its p_paddr. The initial RAM disk is the first module.

use super::bytes::{u32_at, u64_at};
use super::elf_file::{self, Class, ElfFile};
use super::place::Placer;
use super::{Error, Loaded, Protocol, Request, entry, start_info};

const FORMAT: &str = "PVH image";
const OWNER: &[u8] = b"Xen";
const PHYS32_ENTRY: u32 = 18;

pub(super) fn probe(image: &[u8]) -> Option<String> {
    let file = elf_file::parse(image).ok()?;
    file.note(OWNER, PHYS32_ENTRY)?;
    Some(describe(file.class))
}

fn describe(class: Class) -> String {
    format!("PVH, {}", class.name())
}

pub(super) fn load(request: &Request<'_>) -> Result<Loaded, Error> {
    let file = elf_file::parse(request.image)?;
    let physical = physical_entry(&file)?;
    let mut placer = Placer::new(request);
    file.put(&mut placer)?;
    let mut cpu = entry::protected(&mut placer, physical, entry::CODE, entry::DATA)?;
    cpu.regs.rbx = start_info::put(&mut placer, request)?;
    let description = describe(file.class);
    Ok(Loaded { protocol: Protocol::Pvh, description, cpu, placed: placer.finish() })
}

fn physical_entry(file: &ElfFile<'_>) -> Result<u32, Error> {
    let bad = |problem: String| Error::malformed(FORMAT, problem);
    let descriptor = file.note(OWNER, PHYS32_ENTRY).ok_or_else(|| {
        bad(format!("it has no note of type {PHYS32_ENTRY} whose owner is \"Xen\""))
    })?;
    let entry = match descriptor.len() {
        4 => u32_at(descriptor, 0).map(u64::from),
        _ => u64_at(descriptor, 0),
    };
    let entry = entry.ok_or_else(|| {
        bad(format!("its PVH note has {} bytes instead of 4 or 8", descriptor.len()))
    })?;
    match u32::try_from(entry) {
        Ok(address) if file.is_loaded(entry) => Ok(address),
        _ => Err(bad(format!("its PVH entry point {entry:#x} is in none of its segments"))),
    }
}
