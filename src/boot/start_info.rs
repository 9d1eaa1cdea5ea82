//! PVH's `hvm_start_info`: command line, modules and memory map for the guest (Xen's
//! `xen/include/public/arch-x86/hvm/start_info.h`, version 1). PVH promises it; flat and
//! plain ELF images get it too, having no form of their own.

use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::ByteValued;

use super::place::{Placer, Room};
use super::{Error, Request, extras};

/// "xEn3" with the top bit of the E set.
pub(super) const MAGIC: u32 = 0x336E_C578;
const VERSION: u32 = 1;

/// Places the structure and all it points to; gives its address.
pub(super) fn put(placer: &mut Placer<'_>, request: &Request<'_>) -> Result<u64, Error> {
    let extras = extras::put(placer, request, request.cmdline)?;
    let modules: Vec<u8> = extras
        .modules
        .iter()
        .flat_map(|module| {
            let entry = hvm_modlist_entry {
                paddr: module.range.start,
                size: module.range.len(),
                cmdline_paddr: module.string,
                reserved: 0,
            };
            entry.as_slice().to_vec()
        })
        .collect();
    let entries = &placer.map().entries;
    let count = entries.len() as u32;
    let map: Vec<u8> = entries
        .iter()
        .flat_map(|(range, kind)| {
            let entry = hvm_memmap_table_entry {
                addr: range.start,
                size: range.len(),
                type_: *kind as u32,
                reserved: 0,
            };
            entry.as_slice().to_vec()
        })
        .collect();
    let memmap_paddr = placer.put("memory map", &map, 8, Room::Block)?.start;
    let modlist_paddr = match modules.is_empty() {
        true => 0,
        false => placer.put("module list", &modules, 8, Room::Block)?.start,
    };
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: extras.modules.len() as u32,
        modlist_paddr,
        cmdline_paddr: extras.cmdline,
        memmap_paddr,
        memmap_entries: count,
        ..hvm_start_info::default()
    };
    Ok(placer.put("hvm_start_info", info.as_slice(), 8, Room::Block)?.start)
}
