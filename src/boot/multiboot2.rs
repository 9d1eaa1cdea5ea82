//! Multiboot 2 (Multiboot2 Specification 2.0): a header of tags in the image's first
//! 32 KiB, the image entered in 32-bit protected mode, the information as a list of tags.
//!
//! | | at entry (section 3.3, i386) |
//! |---|---|
//! | EAX | 0x36D76289 |
//! | EBX | physical address of the information, a multiple of 8 (section 3.6) |
//! | CS | 32-bit code, base 0, limit 4 GiB (selector 0x08) |
//! | DS, ES, FS, GS, SS | 32-bit data, base 0, limit 4 GiB (selector 0x10) |
//! | A20 | on |
//! | CR0 | PE, ET: paging off |
//! | EFLAGS | 2: interrupts off, no virtual-8086 mode |
//! | ESP, other registers | undefined by the specification; 0 here |
//! | GDTR | undefined by the specification; a table with the two segments here |
//! | IDTR | undefined by the specification; none here |
//!
//! The information: command line (tag 1, the arguments alone), loader name (2), modules (3;
//! always page-aligned), basic memory (4), memory map (6), ELF sections (9, with the symbol
//! and string tables in memory), load base (21, where the header says that the image is
//! relocatable). ACPI's RSDP (14, 15). Not there: boot device, video,
//! framebuffer, APM, network, EFI.
//!
//! There is no EFI, so that the entry point is the entry address tag's, or ELF's e_entry
//! (for ELF64: its load address); the EFI tags count for nothing. A relocatable image is
//! loaded where it is linked.

use super::bytes::{u16_at, u32_at};
use super::elf_file;
use super::multiboot::Addresses;
use super::multiboot2_info::{self, Facts};
use super::place::Placer;
use super::{Error, Loaded, Protocol, Request, entry};

const FORMAT: &str = "multiboot 2 image";
/// The whole header is in the first 32768 bytes (section 3.1.1).
const SEARCH: usize = 32768;
const HEADER_MAGIC: u32 = 0xE852_50D6;
const LOADER_MAGIC: u64 = 0x36D7_6289;
/// Architecture: 32-bit protected mode of i386.
const I386: u32 = 0;

/// Header tags (section 3.1.4 and after).
mod tag {
    pub(super) const END: u16 = 0;
    pub(super) const INFORMATION: u16 = 1;
    pub(super) const ADDRESS: u16 = 2;
    pub(super) const ENTRY: u16 = 3;
    pub(super) const CONSOLE: u16 = 4;
    pub(super) const FRAMEBUFFER: u16 = 5;
    pub(super) const MODULE_ALIGNMENT: u16 = 6;
    pub(super) const EFI_BOOT_SERVICES: u16 = 7;
    pub(super) const EFI_ENTRY_I386: u16 = 8;
    pub(super) const EFI_ENTRY_AMD64: u16 = 9;
    pub(super) const RELOCATABLE: u16 = 10;
}

/// Tag flag: a loader may ignore the tag.
const OPTIONAL: u16 = 1 << 0;
/// Console tag: there has to be a console.
const CONSOLE_REQUIRED: u32 = 1 << 0;
/// The last kind of information that the specification knows.
const LAST_INFORMATION: u32 = 21;

/// The header: where it is, and its bytes.
#[derive(Clone, Copy, Debug)]
struct Header<'a> {
    offset: usize,
    bytes: &'a [u8],
}

fn find(image: &[u8]) -> Option<Header<'_>> {
    let head = &image[..image.len().min(SEARCH)];
    (0..head.len()).step_by(8).find_map(|offset| {
        if u32_at(head, offset)? != HEADER_MAGIC {
            return None;
        }
        let [architecture, length, checksum] =
            [u32_at(head, offset + 4)?, u32_at(head, offset + 8)?, u32_at(head, offset + 12)?];
        let sum =
            [architecture, length, checksum].into_iter().fold(HEADER_MAGIC, u32::wrapping_add);
        let bytes = head.get(offset..offset.checked_add(length as usize)?)?;
        (sum == 0 && architecture == I386 && bytes.len() >= 16).then_some(Header { offset, bytes })
    })
}

/// What the header's tags ask for.
#[derive(Debug, Default)]
struct Wishes {
    address: Option<Addresses>,
    entry: Option<u32>,
    relocatable: bool,
}

fn bad(problem: String) -> Error {
    Error::malformed(FORMAT, problem)
}

impl Header<'_> {
    fn read(&self) -> Result<Wishes, Error> {
        let mut wishes = Wishes::default();
        let mut at = 16;
        loop {
            let cut = || bad(format!("its header ends inside the tag at {at:#x}"));
            let kind = u16_at(self.bytes, at).ok_or_else(cut)?;
            let flags = u16_at(self.bytes, at + 2).ok_or_else(cut)?;
            let size = u32_at(self.bytes, at + 4).ok_or_else(cut)? as usize;
            if kind == tag::END {
                return Ok(wishes);
            }
            let end = at.checked_add(size).filter(|_| size >= 8).ok_or_else(cut)?;
            let body = self.bytes.get(at + 8..end).ok_or_else(cut)?;
            let tag = Tag { kind, body };
            if flags & OPTIONAL == 0
                && let Some(problem) = tag.unmet()?
            {
                return Err(Error::unsupported(FORMAT, problem));
            }
            self.note_wish(&tag, &mut wishes)?;
            at = end.next_multiple_of(8);
        }
    }

    /// What of a tag decides how the image is loaded.
    fn note_wish(&self, tag: &Tag<'_>, wishes: &mut Wishes) -> Result<(), Error> {
        match tag.kind {
            tag::ADDRESS => {
                wishes.address = Some(Addresses {
                    offset: self.offset,
                    header: tag.word(0)?,
                    load: tag.word(1)?,
                    load_end: tag.word(2)?,
                    bss_end: tag.word(3)?,
                    entry: 0,
                });
            }
            tag::ENTRY => wishes.entry = Some(tag.word(0)?),
            tag::RELOCATABLE => wishes.relocatable = true,
            _ => {}
        }
        Ok(())
    }
}

/// One tag of the header.
#[derive(Clone, Copy, Debug)]
struct Tag<'a> {
    kind: u16,
    body: &'a [u8],
}

impl Tag<'_> {
    fn word(&self, index: usize) -> Result<u32, Error> {
        u32_at(self.body, 4 * index)
            .ok_or_else(|| bad(format!("its header's tag of type {} is too short", self.kind)))
    }

    /// What the tag asks for and nobody here can give.
    fn unmet(&self) -> Result<Option<String>, Error> {
        Ok(match self.kind {
            tag::INFORMATION => {
                let mut asked = self.body.chunks_exact(4).filter_map(|word| u32_at(word, 0));
                asked.find(|kind| *kind > LAST_INFORMATION).map(|kind| {
                    format!("its header requires information of type {kind}, which nobody defined")
                })
            }
            tag::CONSOLE => (self.word(0)? & CONSOLE_REQUIRED != 0).then(|| {
                "its header requires a console, and there is only the serial line".to_owned()
            }),
            tag::FRAMEBUFFER => Some(
                "its header requires a framebuffer, and there is none: mark that tag optional"
                    .to_owned(),
            ),
            tag::ADDRESS
            | tag::ENTRY
            | tag::MODULE_ALIGNMENT
            | tag::EFI_BOOT_SERVICES
            | tag::EFI_ENTRY_I386
            | tag::EFI_ENTRY_AMD64
            | tag::RELOCATABLE => None,
            unknown => Some(format!("its header requires tag {unknown}, which nobody defined")),
        })
    }
}

pub(super) fn probe(image: &[u8]) -> Option<String> {
    let header = find(image)?;
    let by_address = header.read().is_ok_and(|wishes| wishes.address.is_some());
    let form = match elf_file::class(image) {
        _ if by_address => "address tag",
        Some(class) => class.name(),
        None => "no address tag",
    };
    Some(format!("multiboot 2, {form}"))
}

pub(super) fn load(request: &Request<'_>) -> Result<Loaded, Error> {
    let header = find(request.image).ok_or_else(|| {
        bad(format!(
            "there is no multiboot 2 header for i386 (magic {HEADER_MAGIC:#x}, good checksum, at a multiple of 8) in its first {SEARCH} bytes"
        ))
    })?;
    let wishes = header.read()?;
    let mut placer = Placer::new(request);
    let mut facts = Facts::default();
    let image_entry = match wishes.address {
        Some(addresses) => {
            let entry = wishes.entry.ok_or_else(|| {
                bad("its header has an address tag and no entry address tag".to_owned())
            })?;
            let addresses = Addresses { entry, ..addresses }.resolved()?;
            facts.load_base = wishes.relocatable.then_some(addresses.load);
            addresses.put(&mut placer, request.image)?
        }
        None => put_elf(&mut placer, request.image, &wishes, &mut facts)?,
    };
    let info = multiboot2_info::put(&mut placer, request, &facts)?;
    let mut cpu = entry::protected(&mut placer, image_entry, entry::CODE, entry::DATA)?;
    cpu.regs.rax = LOADER_MAGIC;
    cpu.regs.rbx = info;
    let description = probe(request.image).unwrap_or_default();
    Ok(Loaded { protocol: Protocol::Multiboot2, description, cpu, placed: placer.finish() })
}

impl Addresses {
    /// A load address of all ones means the file's first byte (section 3.1.5).
    fn resolved(mut self) -> Result<Self, Error> {
        if self.load == u32::MAX {
            self.load = self.header.checked_sub(self.offset as u32).ok_or_else(|| {
                let (at, header) = (self.offset, self.header);
                bad(format!(
                    "its header is at {at:#x} in the file and at {header:#x} in memory, so that the file would start below 0"
                ))
            })?;
        }
        Ok(self)
    }
}

fn put_elf(
    placer: &mut Placer<'_>,
    image: &[u8],
    wishes: &Wishes,
    facts: &mut Facts,
) -> Result<u32, Error> {
    if elf_file::class(image).is_none() {
        let problem = "its header has no address tag, and it is not an ELF file for x86";
        return Err(bad(problem.to_owned()));
    }
    let mut file = elf_file::parse(image)?;
    file.put(placer)?;
    file.entry = wishes.entry.map_or(file.entry, u64::from);
    let lowest = file.segments.iter().map(|segment| segment.phys).min();
    facts.load_base = lowest.filter(|_| wishes.relocatable).map(|lowest| lowest as u32);
    facts.sections = multiboot2_info::put_sections(placer, image, file.class)?;
    file.physical_entry()
}
