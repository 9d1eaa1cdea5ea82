//! Multiboot 1 (Multiboot Specification 0.6.96): a header in the image's first 8 KiB, the
//! image entered in 32-bit protected mode.
//!
//! | | at entry (section 3.2) |
//! |---|---|
//! | EAX | 0x2BADB002 |
//! | EBX | physical address of the information structure (section 3.3) |
//! | CS | 32-bit code, base 0, limit 4 GiB (selector 0x08) |
//! | DS, ES, FS, GS, SS | 32-bit data, base 0, limit 4 GiB (selector 0x10) |
//! | A20 | on |
//! | CR0 | PE, ET: paging off |
//! | EFLAGS | 2: interrupts off, no virtual-8086 mode |
//! | ESP, other registers | undefined by the specification; 0 here |
//! | GDTR | undefined by the specification; a table with the two segments here |
//! | IDTR | undefined by the specification; none here |
//!
//! The information: memory sizes (flag bit 0), command line (2: the image's name, a space,
//! the arguments), modules (3; always page-aligned), memory map (6), loader name (9). Not
//! there: boot device, drives, APM, symbols, and video, for which header flag 2 asks in
//! vain (its fields say what the image prefers, not what it needs).
//!
//! Images: ELF32; ELF64, which the specification does not know and which is entered in the
//! same state, at the load address of its entry point; and any file whose header has the
//! address fields (flag 16), which win over ELF headers.

use super::bytes::u32_at;
use super::elf_file::{self, ElfFile};
use super::extras::{self, Extras};
use super::place::{Placer, Room};
use super::{Error, Loaded, Protocol, Request, entry};
use crate::mem::{MemoryMap, layout};

pub(super) const LOADER_NAME: &str = "ringfence";
const FORMAT: &str = "multiboot image";
/// The whole header is in the first 8192 bytes (section 3.1).
const SEARCH: usize = 8192;
const HEADER_MAGIC: u32 = 0x1BAD_B002;
const LOADER_MAGIC: u64 = 0x2BAD_B002;

/// Header flags (section 3.1.2). Modules on page boundaries.
const WANTS_PAGES: u32 = 1 << 0;
/// Memory sizes and map.
const WANTS_MEMORY: u32 = 1 << 1;
/// A video mode.
const WANTS_VIDEO: u32 = 1 << 2;
/// What a loader has to refuse if it does not know it.
const REQUIRED: u32 = 0xFFFF;
/// The header says where the image goes.
const HAS_ADDRESSES: u32 = 1 << 16;

/// Where the header is, and its flags.
#[derive(Clone, Copy, Debug)]
struct Header {
    offset: usize,
    flags: u32,
}

fn find(image: &[u8]) -> Option<Header> {
    let head = &image[..image.len().min(SEARCH)];
    (0..head.len()).step_by(4).find_map(|offset| {
        if u32_at(head, offset)? != HEADER_MAGIC {
            return None;
        }
        let (flags, checksum) = (u32_at(head, offset + 4)?, u32_at(head, offset + 8)?);
        let sum = HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum);
        (sum == 0).then_some(Header { offset, flags })
    })
}

pub(super) fn probe(image: &[u8]) -> Option<String> {
    let header = find(image)?;
    let form = match elf_file::class(image) {
        _ if header.flags & HAS_ADDRESSES != 0 => "address fields",
        Some(class) => class.name(),
        None => "no address fields",
    };
    Some(format!("multiboot 1, {form}"))
}

pub(super) fn load(request: &Request<'_>) -> Result<Loaded, Error> {
    let header = find(request.image).ok_or_else(|| {
        let problem = format!(
            "there is no multiboot 1 header (magic {HEADER_MAGIC:#x}, good checksum, at a multiple of 4) in its first {SEARCH} bytes"
        );
        Error::malformed(FORMAT, problem)
    })?;
    let unknown = header.flags & REQUIRED & !(WANTS_PAGES | WANTS_MEMORY | WANTS_VIDEO);
    if unknown != 0 {
        let problem = format!("its header requires features {unknown:#x}, which nobody defined");
        return Err(Error::unsupported(FORMAT, problem));
    }
    let mut placer = Placer::new(request);
    let image_entry = if header.flags & HAS_ADDRESSES != 0 {
        Addresses::read(request.image, header.offset)?.put(&mut placer, request.image)?
    } else {
        put_elf(&mut placer, request.image)?.physical_entry()?
    };
    let info = put_info(&mut placer, request)?;
    let mut cpu = entry::protected(&mut placer, image_entry, entry::CODE, entry::DATA)?;
    cpu.regs.rax = LOADER_MAGIC;
    cpu.regs.rbx = info;
    let description = probe(request.image).unwrap_or_default();
    Ok(Loaded { protocol: Protocol::Multiboot, description, cpu, placed: placer.finish() })
}

/// Loads the segments of an image without address fields.
fn put_elf<'a>(placer: &mut Placer<'_>, image: &'a [u8]) -> Result<ElfFile<'a>, Error> {
    if elf_file::class(image).is_none() {
        return Err(Error::malformed(
            FORMAT,
            "its header has no address fields (flag 16), and it is not an ELF file for x86",
        ));
    }
    let file = elf_file::parse(image)?;
    file.put(placer)?;
    Ok(file)
}

/// Where an image that is not ELF goes: the header's address fields, or multiboot 2's
/// address and entry tags.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    /// Where the header is in the file.
    pub(super) offset: usize,
    /// Where the header is in memory.
    pub(super) header: u32,
    /// First byte in memory.
    pub(super) load: u32,
    /// The address after the last byte that is in the file; 0: the file's end.
    pub(super) load_end: u32,
    /// The address after the zeroes; 0: there are none.
    pub(super) bss_end: u32,
    pub(super) entry: u32,
}

impl Addresses {
    fn read(image: &[u8], offset: usize) -> Result<Self, Error> {
        let field = |index: usize| {
            u32_at(image, offset + 12 + 4 * index).ok_or_else(|| {
                Error::malformed(FORMAT, "the file ends inside its header's address fields")
            })
        };
        Ok(Self {
            offset,
            header: field(0)?,
            load: field(1)?,
            load_end: field(2)?,
            bss_end: field(3)?,
            entry: field(4)?,
        })
    }

    /// Loads what they say; gives the entry point.
    pub(super) fn put(&self, placer: &mut Placer<'_>, image: &[u8]) -> Result<u32, Error> {
        let bad = |problem: String| Error::malformed(FORMAT, problem);
        let Self { offset, header, load, load_end, bss_end, entry } = *self;
        let before = header.checked_sub(load).map(|len| len as usize);
        let start = before.and_then(|before| offset.checked_sub(before)).ok_or_else(|| {
            bad(format!(
                "its header is at {offset:#x} in the file and at {header:#x} in memory, so that its load address {load:#x} is not in the file"
            ))
        })?;
        let in_file = image.len() - start;
        let len = match load_end {
            0 => in_file,
            end => end.checked_sub(load).map_or(usize::MAX, |len| len as usize),
        };
        if len > in_file {
            return Err(bad(format!(
                "its load addresses {load:#x}..{load_end:#x} need more than the {in_file:#x} bytes from {start:#x} to the file's end: is it truncated?"
            )));
        }
        let end = u64::from(load) + len as u64;
        if bss_end != 0 && u64::from(bss_end) < end {
            return Err(bad(format!(
                "its zeroes end at {bss_end:#x}, before its bytes do ({end:#x})"
            )));
        }
        let end = end.max(u64::from(bss_end));
        if !(u64::from(load)..end).contains(&u64::from(entry)) {
            return Err(bad(format!(
                "its entry point {entry:#x} is outside of it ({load:#x}..{end:#x})"
            )));
        }
        let bytes = &image[start..start + len];
        placer.put_at("image", u64::from(load), bytes, end - u64::from(load))?;
        Ok(entry)
    }
}

/// The image's name, a space, the arguments.
fn full_cmdline(request: &Request<'_>) -> String {
    let words = [request.image_name, request.cmdline];
    words.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join(" ")
}

/// The information structure's fields that are filled, by offset (section 3.3).
mod info {
    pub(super) const SIZE: usize = 116;
    pub(super) const FLAGS: usize = 0;
    pub(super) const MEM_LOWER: usize = 4;
    pub(super) const MEM_UPPER: usize = 8;
    pub(super) const CMDLINE: usize = 16;
    pub(super) const MODS_COUNT: usize = 20;
    pub(super) const MODS_ADDR: usize = 24;
    pub(super) const MMAP_LENGTH: usize = 44;
    pub(super) const MMAP_ADDR: usize = 48;
    pub(super) const BOOT_LOADER_NAME: usize = 64;

    pub(super) const HAS_MEMORY: u32 = 1 << 0;
    pub(super) const HAS_CMDLINE: u32 = 1 << 2;
    pub(super) const HAS_MODULES: u32 = 1 << 3;
    pub(super) const HAS_MAP: u32 = 1 << 6;
    pub(super) const HAS_LOADER_NAME: u32 = 1 << 9;
}

fn put_info(placer: &mut Placer<'_>, request: &Request<'_>) -> Result<u64, Error> {
    placer.rsdp()?; // the structure has no field for it: guests search
    let extras = extras::put(placer, request, &full_cmdline(request))?;
    let name = [LOADER_NAME.as_bytes(), &[0]].concat();
    let name = placer.put("loader name", &name, 8, Room::Block)?.start;
    let map = memory_map(placer.map());
    let map_at = placer.put("memory map", &map, 8, Room::Block)?.start;
    let list = module_list(&extras);
    let list_at = match list.is_empty() {
        true => 0,
        false => placer.put("module list", &list, 8, Room::Block)?.start,
    };
    let flags = info::HAS_MEMORY
        | info::HAS_CMDLINE
        | info::HAS_MODULES
        | info::HAS_MAP
        | info::HAS_LOADER_NAME;
    let mut bytes = [0; info::SIZE];
    // Everything lies below 4 GiB, so that no cast loses anything.
    for (at, value) in [
        (info::FLAGS, flags),
        (info::MEM_LOWER, (layout::LOW_RAM_END >> 10) as u32),
        (info::MEM_UPPER, placer.map().upper_kib() as u32),
        (info::CMDLINE, extras.cmdline as u32),
        (info::MODS_COUNT, extras.modules.len() as u32),
        (info::MODS_ADDR, list_at as u32),
        (info::MMAP_LENGTH, map.len() as u32),
        (info::MMAP_ADDR, map_at as u32),
        (info::BOOT_LOADER_NAME, name as u32),
    ] {
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    Ok(placer.put("multiboot information", &bytes, 8, Room::Block)?.start)
}

/// Each entry: its size without this field, base, length, type.
fn memory_map(map: &MemoryMap) -> Vec<u8> {
    const ENTRY_SIZE: u32 = 20;
    let mut bytes = Vec::new();
    for (range, kind) in &map.entries {
        bytes.extend(ENTRY_SIZE.to_le_bytes());
        bytes.extend(range.start.to_le_bytes());
        bytes.extend(range.len().to_le_bytes());
        bytes.extend((*kind as u32).to_le_bytes());
    }
    bytes
}

/// Each entry: start, end, string, reserved.
fn module_list(extras: &Extras) -> Vec<u8> {
    let fields = extras.modules.iter().flat_map(|module| {
        [module.range.start as u32, module.range.end as u32, module.string as u32, 0]
    });
    fields.flat_map(u32::to_le_bytes).collect()
}
