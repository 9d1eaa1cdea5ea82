//! Multiboot 2's information: a list of tags, each at a multiple of 8 (Multiboot2
//! Specification 2.0, section 3.6). Called by `multiboot2`.

use super::bytes::{u16_at, u32_at, u64_at};
use super::elf_file::Class;
use super::multiboot::LOADER_NAME;
use super::place::{Placer, Room};
use super::{Error, Request, acpi, extras};
use crate::mem::{Bytes, GuestAddress, PAGE_SIZE, Range, layout};

/// Tag types.
mod tag {
    pub(super) const END: u32 = 0;
    pub(super) const CMDLINE: u32 = 1;
    pub(super) const LOADER_NAME: u32 = 2;
    pub(super) const MODULE: u32 = 3;
    pub(super) const MEMORY: u32 = 4;
    pub(super) const MAP: u32 = 6;
    pub(super) const SECTIONS: u32 = 9;
    pub(super) const OLD_RSDP: u32 = 14;
    pub(super) const NEW_RSDP: u32 = 15;
    pub(super) const LOAD_BASE: u32 = 21;
}

const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;

/// What only loading the image shows.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) load_base: Option<u32>,
    pub(super) sections: Option<Sections>,
}

/// ELF section headers as the guest gets them.
#[derive(Debug)]
pub(super) struct Sections {
    count: u32,
    entry_size: u32,
    names: u32,
    headers: Vec<u8>,
}

/// Places the information; gives its address.
pub(super) fn put(
    placer: &mut Placer<'_>,
    request: &Request<'_>,
    facts: &Facts,
) -> Result<u64, Error> {
    let modules = extras::put_modules(placer, request)?;
    let mut list = Tags::new();
    list.add(tag::CMDLINE, &[request.cmdline.as_bytes(), &[0]]);
    list.add(tag::LOADER_NAME, &[LOADER_NAME.as_bytes(), &[0]]);
    for (range, (_, string)) in modules.iter().zip(extras::modules(request)) {
        list.add(tag::MODULE, &[&words(&[range.start, range.end]), string.as_bytes(), &[0]]);
    }
    list.add(tag::MEMORY, &[&words(&[layout::LOW_RAM_END >> 10, placer.map().upper_kib()])]);
    list.add(tag::MAP, &[&memory_map(placer)]);
    if let Some(s) = &facts.sections {
        let head = [s.count, s.entry_size, s.names].map(u32::to_le_bytes).concat();
        list.add(tag::SECTIONS, &[&head, &s.headers]);
    }
    if let Some(rsdp) = rsdp(placer)? {
        list.add(tag::OLD_RSDP, &[&rsdp[..acpi::RSDP_1_LEN]]);
        list.add(tag::NEW_RSDP, &[&rsdp]);
    }
    if let Some(base) = facts.load_base {
        list.add(tag::LOAD_BASE, &[&base.to_le_bytes()]);
    }
    Ok(placer.put("multiboot information", &list.finish(), 8, Room::Block)?.start)
}

/// A copy of the RSDP, if there is one.
fn rsdp(placer: &mut Placer<'_>) -> Result<Option<[u8; acpi::RSDP_LEN]>, Error> {
    let Some(address) = placer.rsdp()? else { return Ok(None) };
    let mut bytes = [0; acpi::RSDP_LEN];
    let refused = |source| Error::Memory { what: "RSDP".to_owned(), address, source };
    placer.memory().read_slice(&mut bytes, GuestAddress(address)).map_err(refused)?;
    Ok(Some(bytes))
}

/// Everything lies below 4 GiB, so that no cast loses anything.
fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| (*value as u32).to_le_bytes()).collect()
}

/// Size and version of an entry, then each: base, length, type, reserved.
fn memory_map(placer: &Placer<'_>) -> Vec<u8> {
    const ENTRY_SIZE: u64 = 24;
    let mut bytes = words(&[ENTRY_SIZE, 0]);
    for (range, kind) in &placer.map().entries {
        bytes.extend(range.start.to_le_bytes());
        bytes.extend(range.len().to_le_bytes());
        bytes.extend((*kind as u32).to_le_bytes());
        bytes.extend([0; 4]);
    }
    bytes
}

/// The list under construction: total size, a reserved word, tags.
#[derive(Debug)]
struct Tags(Vec<u8>);

impl Tags {
    fn new() -> Self {
        Self(vec![0; 8])
    }

    /// Adds a tag; its size counts type and size, and no padding.
    fn add(&mut self, kind: u32, parts: &[&[u8]]) {
        let size = 8 + parts.iter().map(|part| part.len()).sum::<usize>();
        self.0.extend(kind.to_le_bytes());
        self.0.extend((size as u32).to_le_bytes());
        parts.iter().for_each(|part| self.0.extend_from_slice(part));
        self.0.resize(self.0.len().next_multiple_of(8), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add(tag::END, &[]);
        let total = (self.0.len() as u32).to_le_bytes();
        self.0[..4].copy_from_slice(&total);
        self.0
    }
}

/// Puts symbol and string tables into memory, and their addresses into a copy of the
/// section headers. A section table that is not all there is none: nothing needs it to run.
pub(super) fn put_sections(
    placer: &mut Placer<'_>,
    image: &[u8],
    class: Class,
) -> Result<Option<Sections>, Error> {
    let Some(mut sections) = read_sections(image, class) else { return Ok(None) };
    // Sections that share bytes could ask for more memory than the file is long.
    let mut left = image.len() as u64;
    for header in sections.headers.chunks_exact_mut(sections.entry_size as usize) {
        let Some((bytes, address)) = table_to_load(image, header, class) else { continue };
        let Some(rest) = left.checked_sub(bytes.len() as u64) else { break };
        left = rest;
        let range = put_table(placer, bytes)?;
        let (at, size) = address;
        header[at..at + size].copy_from_slice(&range.start.to_le_bytes()[..size]);
    }
    Ok(Some(sections))
}

fn put_table(placer: &mut Placer<'_>, bytes: &[u8]) -> Result<Range, Error> {
    placer.put("symbols and strings", bytes, PAGE_SIZE, Room::AboveImage)
}

fn read_sections(image: &[u8], class: Class) -> Option<Sections> {
    let (offset, rest, size) = match class {
        Class::Elf32 => (u64::from(u32_at(image, 0x20)?), 0x2E, 40),
        Class::Elf64 => (u64_at(image, 0x28)?, 0x3A, 64),
    };
    let [entry_size, count, names] =
        [u16_at(image, rest)?, u16_at(image, rest + 2)?, u16_at(image, rest + 4)?];
    if entry_size != size || count == 0 {
        return None;
    }
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::from(entry_size) * usize::from(count))?;
    let headers = image.get(start..end)?.to_vec();
    let (count, entry_size, names) = (count.into(), entry_size.into(), names.into());
    Some(Sections { count, entry_size, names, headers })
}

/// A symbol or string table that no segment loads: its bytes, and where in the header its
/// address is and how long that is.
fn table_to_load<'a>(
    image: &'a [u8],
    header: &[u8],
    class: Class,
) -> Option<(&'a [u8], (usize, usize))> {
    let kind = u32_at(header, 4)?;
    let (address, offset, size, field) = match class {
        Class::Elf32 => {
            let field = |at| u32_at(header, at).map(u64::from);
            (field(12)?, field(16)?, field(20)?, (12, 4))
        }
        Class::Elf64 => (u64_at(header, 16)?, u64_at(header, 24)?, u64_at(header, 32)?, (16, 8)),
    };
    if !matches!(kind, SHT_SYMTAB | SHT_STRTAB) || address != 0 || size == 0 {
        return None;
    }
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    Some((image.get(start..end)?, field))
}
