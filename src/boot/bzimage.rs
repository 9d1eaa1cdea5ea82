//! Linux, and programs in the shape of its bzImage (`Documentation/arch/x86/boot.rst`).
//!
//! The 64-bit boot protocol where the image has that entry (version 2.12 or later,
//! XLF_KERNEL_64), else the 32-bit one:
//!
//! | | 64-bit | 32-bit |
//! |---|---|---|
//! | loaded at | pref_address if relocatable, else 0x100000 | the same |
//! | RIP | load address + 0x200 | load address; code32_start if that is inside the image |
//! | RSI | physical address of the zero page | the same |
//! | RBX, RBP, RDI | 0 | 0 (promised) |
//! | CS | `__BOOT_CS` 0x10: 64-bit code | 0x10: flat 32-bit code |
//! | DS, ES, SS | `__BOOT_DS` 0x18: flat data (FS, GS too) | the same |
//! | GDTR | a table with both segments | the same |
//! | CR0, CR4, EFER | PE, ET, PG; PAE; LME, LMA | PE, ET; 0; 0 |
//! | paging | low 4 GiB identity-mapped | off |
//! | RFLAGS | 2: interrupts off | the same |
//! | RSP, other registers | not promised; 0 | the same |
//!
//! Only the protected-mode part is loaded, with init_size bytes of room where it will run.
//! The zero page holds the setup header as the image has it, with type_of_loader 0xFF,
//! cmd_line_ptr, the initial RAM disk (page-aligned, as high as initrd_addr_max allows) and
//! code32_start set; the E820 map; alt_mem_k. No real-mode code runs, so that there is no
//! heap to promise (CAN_USE_HEAP stays clear), and screen_info says that there is no screen.

use linux_loader::loader::bootparam::{CAN_USE_HEAP, LOADED_HIGH, XLF_KERNEL_64, boot_params};
use vm_memory::ByteValued;

use super::bytes::{u16_at, u32_at, u64_at};
use super::place::Placer;
use super::zero_page::{self, Limits};
use super::{Error, Loaded, Protocol, Request, elf_file, entry, vmlinux};
use crate::mem::layout;
use crate::x86::CpuInit;

const FORMAT: &str = "bzImage";
pub(super) const BOOT_CS: u16 = 0x10;
pub(super) const BOOT_DS: u16 = 0x18;
/// The 64-bit entry is that far into the image.
const ENTRY_64: u64 = 0x200;
const SECTOR: usize = 512;
const HEADER_START: usize = 0x1F1;
/// What follows the setup header in the zero page.
const HEADER_END: usize = 0x290;
/// Of version 2.00.
const OLDEST_HEADER_END: usize = 0x224;
/// Of versions before 2.06.
const OLD_CMDLINE_SIZE: u32 = 255;
/// Of versions before 2.03.
const OLD_INITRD_MAX: u32 = 0x37FF_FFFF;

/// The setup header's fields that decide how the image is loaded.
#[derive(Clone, Copy, Debug)]
struct Header<'a> {
    version: u16,
    load_flags: u8,
    relocatable: bool,
    xload_flags: u16,
    code32_start: u32,
    alignment: u32,
    pref_address: u64,
    init_size: u32,
    limits: Limits,
    /// As it goes into the zero page, from 0x1F1.
    bytes: &'a [u8],
    /// The protected-mode part.
    kernel: &'a [u8],
}

fn is_bzimage(image: &[u8]) -> bool {
    u16_at(image, 0x1FE) == Some(0xAA55) && image.get(0x202..0x206) == Some(b"HdrS")
}

/// The setup header in the file. Fields that lie beyond its end, or that are younger than
/// its version, hold other things.
#[derive(Clone, Copy, Debug)]
struct Fields<'a> {
    image: &'a [u8],
    version: u16,
    end: usize,
}

impl<'a> Fields<'a> {
    fn find(image: &'a [u8]) -> Result<Self, Error> {
        if !is_bzimage(image) {
            return Err(bad("it has no setup header (55 AA at 0x1fe, \"HdrS\" at 0x202)"));
        }
        // A byte of the jump over the header tells its end.
        let end = (0x202 + usize::from(image[0x201])).min(HEADER_END);
        if image.len() < end.max(OLDEST_HEADER_END) {
            return Err(bad("its header is truncated"));
        }
        let version = u16_at(image, 0x206).unwrap_or(0);
        Ok(Self { image, version, end })
    }

    fn has(&self, least: u16, at: usize) -> bool {
        self.version >= least && at < self.end
    }

    fn u8(&self, least: u16, at: usize) -> Option<u8> {
        self.image.get(at).copied().filter(|_| self.has(least, at))
    }

    fn u16(&self, least: u16, at: usize) -> Option<u16> {
        u16_at(self.image, at).filter(|_| self.has(least, at))
    }

    fn u32(&self, least: u16, at: usize) -> Option<u32> {
        u32_at(self.image, at).filter(|_| self.has(least, at))
    }

    /// The protected-mode part: what follows the boot sector and the setup's sectors.
    fn kernel(&self) -> Result<&'a [u8], Error> {
        let setup_sectors = match self.image[HEADER_START] {
            0 => 4, // boot.rst: "if this field contains 0, the real value is 4"
            sectors => usize::from(sectors),
        };
        let start = (setup_sectors + 1) * SECTOR;
        self.image.get(start..).filter(|kernel| !kernel.is_empty()).ok_or_else(|| {
            bad(format!(
                "it ends at {:#x}, before its kernel starts at {start:#x}: is it truncated?",
                self.image.len()
            ))
        })
    }
}

impl<'a> Header<'a> {
    fn read(image: &'a [u8]) -> Result<Self, Error> {
        let fields = Fields::find(image)?;
        let pref_address = u64_at(image, 0x258).filter(|_| fields.has(0x20A, 0x258));
        let header = Self {
            version: fields.version,
            load_flags: fields.u8(0, 0x211).unwrap_or(0),
            relocatable: fields.u8(0x205, 0x234).unwrap_or(0) != 0,
            xload_flags: fields.u16(0x20C, 0x236).unwrap_or(0),
            code32_start: fields.u32(0, 0x214).unwrap_or(0),
            alignment: fields.u32(0x205, 0x230).unwrap_or(0),
            pref_address: pref_address.unwrap_or(0),
            init_size: fields.u32(0x20A, 0x260).unwrap_or(0),
            limits: Limits {
                cmdline: fields.u32(0x206, 0x238).unwrap_or(OLD_CMDLINE_SIZE),
                initrd: fields.u32(0x203, 0x22C).unwrap_or(OLD_INITRD_MAX),
            },
            bytes: &image[HEADER_START..fields.end],
            kernel: fields.kernel()?,
        };
        header.check_length(u32_at(image, 0x1F4))?;
        Ok(header)
    }

    /// From version 2.04 on, syssize is the kernel's length in units of 16 bytes.
    fn check_length(&self, syssize: Option<u32>) -> Result<(), Error> {
        let needed = u64::from(syssize.unwrap_or(0)) * 16;
        let there = self.kernel.len() as u64;
        if self.version < 0x204 || needed <= there.next_multiple_of(16) {
            return Ok(());
        }
        Err(bad(format!(
            "its kernel should have {needed:#x} bytes and the file holds {there:#x} of them: is it truncated?"
        )))
    }

    fn has_64_bit_entry(&self) -> bool {
        self.xload_flags & XLF_KERNEL_64 != 0
    }

    fn describe(&self) -> String {
        let bits = if self.has_64_bit_entry() { 64 } else { 32 };
        let (major, minor) = (self.version >> 8, self.version & 0xFF);
        format!("Linux bzImage, protocol {major}.{minor:02}, {bits}-bit entry")
    }

    /// Where the kernel goes, and where the room ends that it needs to unpack itself.
    fn place(&self) -> Result<(u64, u64), Error> {
        let load = match self.pref_address {
            address if self.relocatable && address != 0 => address,
            _ => layout::HIGH_RAM_START,
        };
        let run = match (self.relocatable, self.pref_address) {
            (true, _) => load.checked_next_multiple_of(u64::from(self.alignment.max(1))),
            (false, 0) => Some(load),
            (false, address) => Some(address),
        };
        let run = run.filter(|run| (layout::HIGH_RAM_START..layout::HOLE_START).contains(run));
        let run = run.filter(|_| load >= layout::HIGH_RAM_START).ok_or_else(|| {
            let address = self.pref_address;
            Error::unsupported(
                FORMAT,
                format!("it wants to run at {address:#x}, which is not between 1 MiB and 3 GiB"),
            )
        })?;
        let end = load + self.kernel.len() as u64;
        Ok((load, end.max(run + u64::from(self.init_size))))
    }

    /// Where a 32-bit kernel at `load` is entered.
    fn entry_32(&self, load: u64) -> Result<u64, Error> {
        let usual = u64::from(self.code32_start);
        // Written for 0x100000; a kernel that is loaded elsewhere is entered as far in.
        let offset = match usual {
            0 => 0,
            _ => usual.wrapping_sub(layout::HIGH_RAM_START),
        };
        if offset < self.kernel.len() as u64 {
            return Ok(load + offset);
        }
        Err(bad(format!("its 32-bit entry point {usual:#x} is outside of it")))
    }
}

fn bad(problem: impl Into<String>) -> Error {
    Error::malformed(FORMAT, problem)
}

pub(super) fn probe(image: &[u8]) -> Option<String> {
    if !is_bzimage(image) {
        return None;
    }
    Some(Header::read(image).map_or_else(|_| "damaged Linux bzImage".into(), |h| h.describe()))
}

pub(super) fn load(request: &Request<'_>) -> Result<Loaded, Error> {
    if elf_file::class(request.image).is_some() {
        return vmlinux::load(request);
    }
    let header = Header::read(request.image)?;
    if header.load_flags & LOADED_HIGH == 0 {
        return Err(Error::unsupported(
            FORMAT,
            "it is a zImage, made for memory below 640 KiB: build a bzImage",
        ));
    }
    let (start, end) = header.place()?;
    let mut placer = Placer::new(request);
    placer.put_at("kernel, with room to unpack", start, header.kernel, end - start)?;
    let mut params = boot_params::default();
    let field = HEADER_START..HEADER_START + header.bytes.len();
    params.as_mut_slice()[field].copy_from_slice(header.bytes);
    params.hdr.loadflags &= !CAN_USE_HEAP;
    params.hdr.code32_start = start as u32;
    params.hdr.setup_data = 0;
    let zero_page = zero_page::put(&mut placer, request, params, header.limits)?;
    let mut cpu = enter(&header, &mut placer, start)?;
    cpu.regs.rsi = zero_page;
    let description = header.describe();
    Ok(Loaded { protocol: Protocol::Linux, description, cpu, placed: placer.finish() })
}

fn enter(header: &Header<'_>, placer: &mut Placer<'_>, load: u64) -> Result<CpuInit, Error> {
    if !header.has_64_bit_entry() {
        return entry::protected(placer, header.entry_32(load)? as u32, BOOT_CS, BOOT_DS);
    }
    if header.kernel.len() as u64 <= ENTRY_64 {
        return Err(bad("its kernel ends before its 64-bit entry point"));
    }
    entry::long(placer, load + ENTRY_64, (BOOT_CS, BOOT_DS), &[])
}
