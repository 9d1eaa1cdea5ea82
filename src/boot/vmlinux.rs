//! Linux's own ELF file: ELF64 with a note whose owner is "Linux"
//! (`include/linux/elfnote.h`), entered by the 64-bit boot protocol
//! (`Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol").
//!
//! The state is that of a bzImage's 64-bit entry, with RIP = e_entry, which is a physical
//! address (where it is a link address, its load address). Segments are loaded at p_paddr.
//! The file has no setup header, so that the zero page gets the least of one: boot_flag,
//! "HdrS", version 2.15, LOADED_HIGH.

use linux_loader::loader::bootparam::{LOADED_HIGH, boot_params};

use super::bzimage::{BOOT_CS, BOOT_DS};
use super::elf_file::{self, Class};
use super::place::Placer;
use super::zero_page::{self, Limits};
use super::{Error, Loaded, Protocol, Request, entry};

const DESCRIPTION: &str = "Linux vmlinux, ELF64, 64-bit entry";
const OWNER: &[u8] = b"Linux";
/// Of x86 kernels since 2.6 (COMMAND_LINE_SIZE 2048, with the NUL); the initial RAM disk
/// may be anywhere below 2 GiB, as every bzImage of these says.
const LIMITS: Limits = Limits { cmdline: 2047, initrd: 0x7FFF_FFFF };
const BOOT_FLAG: u16 = 0xAA55;
const VERSION: u16 = 0x020F;

pub(super) fn probe(image: &[u8]) -> Option<String> {
    let file = elf_file::parse(image).ok()?;
    let is_linux = file.class == Class::Elf64 && file.notes.iter().any(|note| note.owner == OWNER);
    is_linux.then(|| DESCRIPTION.to_owned())
}

/// With or without the note: where the protocol is asked for by name, the note is not needed
/// (old kernels and stripped ones have none).
pub(super) fn load(request: &Request<'_>) -> Result<Loaded, Error> {
    let file = elf_file::parse(request.image)?;
    if file.class != Class::Elf64 {
        let problem = "it is 32-bit, and only 64-bit ones are loaded as they are: use its bzImage";
        return Err(Error::unsupported("vmlinux", problem));
    }
    let physical = u64::from(file.physical_entry()?);
    let mut placer = Placer::new(request);
    file.put(&mut placer)?;
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = u32::from_le_bytes(*b"HdrS");
    params.hdr.version = VERSION;
    params.hdr.loadflags = LOADED_HIGH;
    let zero_page = zero_page::put(&mut placer, request, params, LIMITS)?;
    let mut cpu = entry::long(&mut placer, physical, (BOOT_CS, BOOT_DS), &[])?;
    cpu.regs.rsi = zero_page;
    let description = DESCRIPTION.to_owned();
    Ok(Loaded { protocol: Protocol::Linux, description, cpu, placed: placer.finish() })
}
