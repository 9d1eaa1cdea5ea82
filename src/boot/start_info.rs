//! PVH's `hvm_start_info`: command line, modules and memory map for the guest (Xen's
//! `xen/include/public/arch-x86/hvm/start_info.h`, version 1). PVH promises it; flat and
//! plain ELF images get it too, having no form of their own.

use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::ByteValued;

use super::extras::PlacedModule;
use super::place::{Placer, Room};
use super::{Error, Request, extras};
use crate::mem::MemoryMap;

/// "xEn3" with the top bit of the E set.
pub(super) const MAGIC: u32 = 0x336E_C578;
const VERSION: u32 = 1;

/// Places the structure and all it points to; gives its address.
pub(super) fn put(placer: &mut Placer<'_>, request: &Request<'_>) -> Result<u64, Error> {
    let extras = extras::put(placer, request, request.cmdline)?;
    let modules = module_list(&extras.modules);
    let map = memory_map(placer.map());
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
        rsdp_paddr: placer.rsdp()?.unwrap_or(0),
        memmap_paddr,
        memmap_entries: placer.map().entries.len() as u32,
        ..hvm_start_info::default()
    };
    Ok(placer.put("hvm_start_info", info.as_slice(), 8, Room::Block)?.start)
}

fn module_list(modules: &[PlacedModule]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for module in modules {
        let entry = hvm_modlist_entry {
            paddr: module.range.start,
            size: module.range.len(),
            cmdline_paddr: module.string,
            reserved: 0,
        };
        bytes.extend_from_slice(entry.as_slice());
    }
    bytes
}

fn memory_map(map: &MemoryMap) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (range, kind) in &map.entries {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.len(),
            type_: *kind as u32,
            reserved: 0,
        };
        bytes.extend_from_slice(entry.as_slice());
    }
    bytes
}
