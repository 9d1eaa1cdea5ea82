//! The zero page: what Linux is told (`Documentation/arch/x86/zero-page.rst`). Called by
//! both ways of loading Linux, with the setup header already in it.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::ByteValued;

use super::place::{Placer, Room};
use super::{Error, Request};
use crate::mem::PAGE_SIZE;

/// What the kernel takes, from its setup header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The longest command line, without its NUL.
    pub(super) cmdline: u32,
    /// The highest address that the initial RAM disk's last byte may have.
    pub(super) initrd: u32,
}

/// "Undefined": no loader with a number of its own.
const LOADER: u8 = 0xFF;

/// Places command line and initial RAM disk, fills in the rest of `params`, and places it;
/// gives its address.
pub(super) fn put(
    placer: &mut Placer<'_>,
    request: &Request<'_>,
    mut params: boot_params,
    limits: Limits,
) -> Result<u64, Error> {
    if !request.modules.is_empty() {
        return Err(Error::usage("Linux takes no modules: hand it an --initrd"));
    }
    let (len, most) = (request.cmdline.len(), limits.cmdline as usize);
    if len > most {
        return Err(Error::usage(format!(
            "the command line has {len} bytes, and this kernel takes {most}: shorten it"
        )));
    }
    let cmdline = [request.cmdline.as_bytes(), &[0]].concat();
    params.hdr.cmd_line_ptr = placer.put("command line", &cmdline, 16, Room::Block)?.start as u32;
    if let Some(initrd) = request.initrd.filter(|initrd| !initrd.is_empty()) {
        let room = Room::Top(u64::from(limits.initrd) + 1);
        let range = placer.put("initrd", initrd, PAGE_SIZE, room)?;
        params.hdr.ramdisk_image = range.start as u32;
        params.hdr.ramdisk_size = range.len() as u32;
    }
    params.acpi_rsdp_addr = placer.rsdp()?.unwrap_or(0);
    params.hdr.type_of_loader = LOADER;
    params.alt_mem_k = placer.map().upper_kib() as u32;
    let entries = &placer.map().entries;
    params.e820_entries = entries.len() as u8;
    for (slot, (range, kind)) in params.e820_table.iter_mut().zip(entries) {
        *slot = boot_e820_entry { addr: range.start, size: range.len(), r#type: *kind as u32 };
    }
    Ok(placer.put("zero page", params.as_slice(), PAGE_SIZE, Room::Block)?.start)
}
