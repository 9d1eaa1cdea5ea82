//! Flat binaries: bytes without a header, entered at their first byte in the mode that
//! `--entry` names. A sector of 512 bytes that ends in 55 AA needs no `--entry`: it is a
//! boot sector, and entered as a BIOS would (IBM PC convention; BIOS Boot Specification
//! 1.01, 6.5).
//!
//! | | real | protected | long |
//! |---|---|---|---|
//! | load address | 0x7C00, or `--load-address` up to 1 MiB | 0x100000 | 0x100000 |
//! | entry | CS:IP = 0000:7C00; elsewhere address >> 4 : address & 15 | load address | load address |
//! | CS, data, SS | base CS << 4, 0, 0; limit 64 KiB | 0x08, 0x10, 0x10: flat, GDT in memory | the same, CS 64-bit |
//! | CR0, CR4, EFER | ET; 0; 0 | PE, ET; 0; 0 | PE, ET, PG; PAE; LME, LMA |
//! | paging | off | off | low 4 GiB identity-mapped, and the image |
//! | stack | SS:SP = 0000:7C00 | 16 KiB; ESP + 4 is a multiple of 16 | 16 KiB; RSP + 8 is a multiple of 16 |
//! | at the stack pointer | | return address 0, then the `hvm_start_info` | return address 0 |
//! | RDX | 0x80, the first hard disk | 0 | 0 |
//! | RBX, RDI | 0 | physical address of an `hvm_start_info` | the same |
//! | other registers | 0 | 0 | 0 |
//! | RFLAGS | 2: interrupts off | the same | the same |
//! | IDT | vectors at 0, see `bios` | none | none |
//!
//! In real mode the stack is elsewhere below 640 KiB where the image itself covers the
//! bytes below 0x7C00. There is no disk: int 13h answers "not supported".

use super::place::{Placer, Room};
use super::{Error, Loaded, Protocol, Request, bios, entry, start_info};
use crate::mem::{Range, layout};
use crate::x86::{CpuInit, Mode, Segment};

const SECTOR: usize = 512;
const SIGNATURE: [u8; 2] = [0x55, 0xAA];
const REAL_STACK: u64 = 4 << 10;
/// BIOS number of the first hard disk.
const FIRST_DISK: u64 = 0x80;

pub(super) fn probe(image: &[u8]) -> Option<String> {
    let is_sector = image.len() == SECTOR && image.ends_with(&SIGNATURE);
    is_sector.then(|| "boot sector, entered in real mode".to_owned())
}

pub(super) fn load(request: &Request<'_>) -> Result<Loaded, Error> {
    if request.image.is_empty() {
        return Err(Error::NotUnderstood { looks_like: "it is empty".to_owned() });
    }
    let sector = probe(request.image);
    let mode = match (request.entry, &sector) {
        (Some(mode), _) => mode,
        (None, Some(_)) => Mode::Real,
        (None, None) => {
            return Err(Error::usage(
                "a flat binary does not say how it is entered: add --entry real|protected|long",
            ));
        }
    };
    let is_sector = sector.is_some() && mode == Mode::Real;
    let what = if is_sector { "boot sector" } else { "flat binary" };
    let mode_name = match mode {
        Mode::Real => "real",
        Mode::Protected => "protected",
        Mode::Long => "long",
    };
    let mut placer = Placer::new(request);
    let cpu = match mode {
        Mode::Real => real(&mut placer, request)?,
        Mode::Protected | Mode::Long => flat(&mut placer, request, mode)?,
    };
    let description = format!("{what}, entered in {mode_name} mode");
    Ok(Loaded { protocol: Protocol::Flat, description, cpu, placed: placer.finish() })
}

fn real(placer: &mut Placer<'_>, request: &Request<'_>) -> Result<CpuInit, Error> {
    if !request.modules.is_empty() || request.initrd.is_some() || !request.cmdline.is_empty() {
        return Err(Error::usage(
            "there is no way to hand a command line or modules to an image that is entered in real mode: leave them out",
        ));
    }
    let start = request.load_address.unwrap_or(layout::BOOT_SECTOR);
    if start >= layout::HIGH_RAM_START {
        return Err(Error::usage(format!(
            "--load-address {start:#x} is out of reach of real mode: choose one below 0x100000"
        )));
    }
    bios::put(placer)?;
    let image = placer.put_at("image", start, request.image, request.image.len() as u64)?;
    placer.rsdp()?;
    let (cs, ip) = match start {
        layout::BOOT_SECTOR => (0, start as u16),
        _ => ((start >> 4) as u16, (start & 0xF) as u16),
    };
    let mut cpu = CpuInit::real(cs, ip);
    cpu.regs.rdx = FIRST_DISK;
    let usual = Range { start: layout::BOOT_SECTOR - REAL_STACK, end: layout::BOOT_SECTOR };
    if image.overlaps(&usual) {
        let room = Room::Top(layout::LOW_RAM_END);
        let stack = placer.find("stack", REAL_STACK, REAL_STACK, room)?;
        cpu.ss = Segment::real((stack.start >> 4) as u16);
        cpu.regs.rsp = REAL_STACK;
    } else {
        placer.claim("stack", usual)?;
        cpu.regs.rsp = layout::BOOT_SECTOR;
    }
    Ok(cpu)
}

fn flat(placer: &mut Placer<'_>, request: &Request<'_>, mode: Mode) -> Result<CpuInit, Error> {
    let start = request.load_address.unwrap_or(layout::HIGH_RAM_START);
    let len = request.image.len() as u64;
    let image = placer.put_at("image", start, request.image, len)?;
    let (code, data) = (entry::CODE, entry::DATA);
    let mut cpu = if mode == Mode::Protected {
        let start = u32::try_from(start).map_err(|_| {
            Error::usage(format!(
                "--load-address {start:#x} is out of reach of protected mode: choose one below 4 GiB"
            ))
        })?;
        entry::protected(placer, start, code, data)?
    } else {
        let mapping = entry::Mapping { virt: start, phys: start, len: image.len() };
        entry::long(placer, start, (code, data), &[mapping])?
    };
    let info = start_info::put(placer, request)?;
    entry::call(placer, &mut cpu, info)?;
    Ok(cpu)
}
