//! Plain ELF: an executable for x86 without a boot protocol's notes or headers.
//!
//! ELF32 (EM_386) is entered in flat 32-bit protected mode with paging off, ELF64
//! (EM_X86_64) in long mode. No specification says how; the state is our own:
//!
//! | | ELF32 | ELF64 |
//! |---|---|---|
//! | segments loaded at | p_paddr; p_vaddr where every p_paddr is 0 | the same |
//! | bytes beyond p_filesz | zero | zero |
//! | RIP | e_entry; its load address where nothing is loaded at e_entry itself | e_entry |
//! | CS, data, SS | 0x08, 0x10, 0x10: flat, 4 GiB, in a GDT in memory | the same, CS 64-bit |
//! | CR0, CR4, EFER | PE, ET; 0; 0 | PE, ET, PG; PAE; LME, LMA |
//! | paging | off | low 4 GiB identity-mapped, each segment also at p_vaddr |
//! | stack | 16 KiB; ESP + 4 is a multiple of 16 | 16 KiB; RSP + 8 is a multiple of 16 |
//! | at the stack pointer | return address 0, then the `hvm_start_info` | return address 0 |
//! | RBX, RDI | physical address of an `hvm_start_info` | the same |
//! | other registers | 0 | 0 |
//! | RFLAGS | 2: interrupts off | the same |
//! | IDT | none | none |
//!
//! So the entry point may be a C function whose one argument is the `hvm_start_info`.
//! Where p_vaddr and the identity mapping disagree, p_vaddr wins.
//!
//! An ET_DYN image (static PIE) is loaded at its own addresses, or moved up by 2 MiB where
//! they start below 1 MiB; R_X86_64_RELATIVE relocations (the only ones that a static PIE
//! without symbols has) are applied.

use object::LittleEndian;
use object::elf::{self as abi, Dyn64, Rela64};
use object::pod;

use super::elf_file::{self, Class, ElfFile};
use super::place::Placer;
use super::{Error, Loaded, Protocol, Request, entry, start_info};
use crate::mem::layout;
use crate::x86::CpuInit;

const FORMAT: &str = "ELF image";
/// Where an ET_DYN image that starts at 0 goes: a multiple of every usual alignment.
const SHIFT: u64 = 2 << 20;

pub(super) fn probe(image: &[u8]) -> Option<String> {
    let class = elf_file::class(image)?;
    let mode = if class == Class::Elf32 { "protected" } else { "long" };
    Some(format!("{}, entered in {mode} mode", class.name()))
}

pub(super) fn load(request: &Request<'_>) -> Result<Loaded, Error> {
    let mut file = elf_file::parse(request.image)?;
    let mut description = probe(request.image).unwrap_or_default();
    if file.has_interpreter {
        return Err(Error::unsupported(
            FORMAT,
            "it is a program for an operating system (it asks for an interpreter), not a bare-metal image",
        ));
    }
    let shift = if file.relocatable { shift(&mut file) } else { 0 };
    if shift != 0 {
        description.push_str(&format!(", moved up by {shift:#x}"));
    }
    let mut placer = Placer::new(request);
    file.put(&mut placer)?;
    relocate(&file, &placer, shift)?;
    let mut cpu = enter(&file, &mut placer, &mut description)?;
    let info = start_info::put(&mut placer, request)?;
    entry::call(&mut placer, &mut cpu, info)?;
    Ok(Loaded { protocol: Protocol::Elf, description, cpu, placed: placer.finish() })
}

fn enter(
    file: &ElfFile<'_>,
    placer: &mut Placer<'_>,
    description: &mut String,
) -> Result<CpuInit, Error> {
    match file.class {
        Class::Elf32 => {
            let physical = file.physical_entry()?;
            if u64::from(physical) != file.entry {
                let linked = file.entry;
                description.push_str(&format!(
                    ", at {physical:#x} where its entry point {linked:#x} is loaded"
                ));
            }
            entry::protected(placer, physical, entry::CODE, entry::DATA)
        }
        Class::Elf64 => {
            let low = file.entry < layout::HOLE_END && file.is_loaded(file.entry);
            if file.to_physical(file.entry).is_none() && !low {
                return Err(file.entry_outside());
            }
            let selectors = (entry::CODE, entry::DATA);
            entry::long(placer, file.entry, selectors, &file.mappings()?)
        }
    }
}

/// Moves an image that starts below 1 MiB out of the way of what a PC has there.
fn shift(file: &mut ElfFile<'_>) -> u64 {
    let lowest = file.segments.iter().map(|segment| segment.phys).min().unwrap_or(0);
    let highest = file.segments.iter().map(|s| s.phys.max(s.virt).saturating_add(s.len)).max();
    let moves = lowest < layout::HIGH_RAM_START && highest < Some(layout::HOLE_START);
    if !moves {
        return 0;
    }
    for segment in &mut file.segments {
        segment.phys += SHIFT;
        segment.virt += SHIFT;
    }
    file.entry = file.entry.wrapping_add(SHIFT);
    SHIFT
}

/// What the dynamic section says of relocations.
#[derive(Debug, Default)]
struct Relocations {
    rela: u64,
    rela_size: u64,
    /// Tags of tables in other forms that hold something.
    other: Vec<&'static str>,
}

fn relocate(file: &ElfFile<'_>, placer: &Placer<'_>, shift: u64) -> Result<(), Error> {
    let Some(dynamic) = file.dynamic.filter(|_| file.relocatable) else { return Ok(()) };
    if file.class == Class::Elf32 {
        // ELF32 keeps addends in place, so that unmoved images need nothing.
        return match shift {
            0 => Ok(()),
            _ => Err(Error::unsupported(
                FORMAT,
                "it is a 32-bit position-independent image that starts below 1 MiB: link it at 1 MiB or above",
            )),
        };
    }
    let found = relocations(dynamic);
    if let Some(other) = found.other.first() {
        let problem = format!("it has {other} relocations: link it with -static and -no-pie");
        return Err(Error::unsupported(FORMAT, problem));
    }
    if found.rela_size == 0 {
        return Ok(());
    }
    for rela in table(file, found.rela.wrapping_add(shift), found.rela_size)? {
        apply(file, placer, rela, shift)?;
    }
    Ok(())
}

fn relocations(dynamic: &[u8]) -> Relocations {
    let mut found = Relocations::default();
    let count = dynamic.len() / size_of::<Dyn64<LittleEndian>>();
    let entries = pod::slice_from_bytes::<Dyn64<LittleEndian>>(dynamic, count);
    for entry in entries.map_or(&[][..], |(entries, _)| entries) {
        let value = entry.d_val.get(LittleEndian);
        match entry.d_tag.get(LittleEndian) {
            abi::DT_NULL => break,
            abi::DT_RELA => found.rela = value,
            abi::DT_RELASZ => found.rela_size = value,
            abi::DT_RELSZ if value > 0 => found.other.push("REL"),
            abi::DT_RELRSZ if value > 0 => found.other.push("RELR"),
            abi::DT_PLTRELSZ if value > 0 => found.other.push("PLT"),
            _ => {}
        }
    }
    found
}

/// The RELA table at a link address.
fn table<'a>(
    file: &ElfFile<'a>,
    virt: u64,
    size: u64,
) -> Result<&'a [Rela64<LittleEndian>], Error> {
    let outside = || {
        Error::malformed(
            FORMAT,
            format!("its relocations ({size:#x} bytes at {virt:#x}) are in none of its segments"),
        )
    };
    let holds = |s: &&elf_file::Segment<'_>| virt.wrapping_sub(s.virt) < s.bytes.len() as u64;
    let segment = file.segments.iter().find(holds).ok_or_else(outside)?;
    let bytes = &segment.bytes[(virt - segment.virt) as usize..];
    let size = usize::try_from(size).map_err(|_| outside())?;
    let bytes = bytes.get(..size).ok_or_else(outside)?;
    let count = size / size_of::<Rela64<LittleEndian>>();
    pod::slice_from_bytes(bytes, count).map(|(table, _)| table).map_err(|()| outside())
}

fn apply(
    file: &ElfFile<'_>,
    placer: &Placer<'_>,
    rela: &Rela64<LittleEndian>,
    shift: u64,
) -> Result<(), Error> {
    let kind = rela.r_type(LittleEndian, false);
    if kind == abi::R_X86_64_NONE {
        return Ok(());
    }
    if kind != abi::R_X86_64_RELATIVE {
        let problem = format!(
            "it has relocations of type {}, which need a dynamic linker: link it with -static and -no-pie",
            kind.0
        );
        return Err(Error::unsupported(FORMAT, problem));
    }
    let virt = rela.r_offset.get(LittleEndian).wrapping_add(shift);
    let last = virt.checked_add(7).and_then(|last| file.to_physical(last));
    let phys = file.to_physical(virt).filter(|phys| last == phys.checked_add(7));
    let phys = phys.ok_or_else(|| {
        Error::malformed(FORMAT, format!("a relocation at {virt:#x} is in none of its segments"))
    })?;
    let value = rela.r_addend.get(LittleEndian).wrapping_add_unsigned(shift);
    placer.write("relocation", phys, &value.to_le_bytes())
}
