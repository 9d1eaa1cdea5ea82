//! Page tables for an image that is entered in long mode: four levels, 2 MiB pages where
//! addresses allow, 4 KiB pages elsewhere (Intel SDM Vol. 3A 5.5).

use vm_memory::{Bytes, GuestAddress};

use crate::mem::{GuestMemory, GuestMemoryError, PAGE_SIZE};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
/// PS: this entry maps a 2 MiB page.
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
const LARGE_PAGE: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

/// Why a page could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The space set aside for tables is used up.
    #[error("the page tables need more than the {pages} pages set aside for them")]
    OutOfPages {
        /// Pages set aside.
        pages: u64,
    },
    /// A linear address that four levels cannot hold.
    #[error("linear address {virt:#x} is not canonical")]
    NotCanonical {
        /// The address.
        virt: u64,
    },
    /// Two mappings disagree.
    #[error("linear address {virt:#x} is mapped already, and to another place")]
    Taken {
        /// The address.
        virt: u64,
    },
    /// There is no RAM behind a table.
    #[error("cannot write a page table")]
    Memory(#[from] GuestMemoryError),
}

/// Four levels of page tables under construction.
#[derive(Debug)]
pub struct PageTables<'m> {
    memory: &'m GuestMemory,
    root: u64,
    next: u64,
    end: u64,
}

impl<'m> PageTables<'m> {
    /// Starts empty tables in `pages` zeroed pages of guest memory at `start`.
    pub fn new(memory: &'m GuestMemory, start: GuestAddress, pages: u64) -> Self {
        let (root, end) = (start.0, start.0 + pages * PAGE_SIZE);
        Self { memory, root, next: root + PAGE_SIZE, end }
    }

    /// The value for CR3.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Maps the pages that hold `virt..virt + len` to those at `phys`, writable and
    /// executable. `virt` and `phys` lie at the same offset in their pages.
    pub fn map(&mut self, virt: u64, phys: u64, len: u64) -> Result<(), Error> {
        // Wraps to 0 for the last page of the address space.
        let end = virt.checked_add(len).and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
        let end = end.unwrap_or(0);
        let mut at = virt & !(PAGE_SIZE - 1);
        let mut to = phys & !(PAGE_SIZE - 1);
        while at != end {
            let step = if (at | to) & (LARGE_PAGE - 1) == 0 && end.wrapping_sub(at) >= LARGE_PAGE {
                self.map_page(at, to | LARGE, 1)?;
                LARGE_PAGE
            } else {
                self.map_page(at, to, 0)?;
                PAGE_SIZE
            };
            at = at.wrapping_add(step);
            to = to.wrapping_add(step);
        }
        Ok(())
    }

    /// Identity-maps what of the low `gib` GiB is not mapped yet.
    pub fn fill_identity(&mut self, gib: u64) -> Result<(), Error> {
        for start in (0..gib).map(|n| n << 30) {
            let top = slot(self.root, start, 3);
            let entry: u64 = self.memory.read_obj(top)?;
            let table = if entry & PRESENT != 0 { entry & ADDRESS } else { self.add_table(top)? };
            let slot = slot(table, start, 2);
            if self.memory.read_obj::<u64>(slot)? & PRESENT != 0 {
                self.fill_around(start)?;
                continue;
            }
            // The usual case, in one write: walking down for each page costs many times
            // as much, and is paid at every start of a guest.
            let pages = (start..start + GIB).step_by(LARGE_PAGE as usize);
            let entries = pages.flat_map(|at| (at | LARGE | PRESENT | WRITABLE).to_le_bytes());
            let table = self.add_table(slot)?;
            self.memory.write_slice(&entries.collect::<Vec<u8>>(), GuestAddress(table))?;
        }
        Ok(())
    }

    /// Fills one GiB in which something is mapped.
    fn fill_around(&mut self, start: u64) -> Result<(), Error> {
        for at in (start..start + GIB).step_by(LARGE_PAGE as usize) {
            match self.map(at, at, LARGE_PAGE) {
                Err(Error::Taken { .. }) => self.fill_large_page(at)?,
                other => other?,
            }
        }
        Ok(())
    }

    fn fill_large_page(&mut self, start: u64) -> Result<(), Error> {
        for at in (start..start + LARGE_PAGE).step_by(PAGE_SIZE as usize) {
            match self.map(at, at, PAGE_SIZE) {
                Err(Error::Taken { .. }) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Writes the entry for `virt` at `level` (0: 4 KiB, 1: 2 MiB).
    fn map_page(&mut self, virt: u64, target: u64, level: u32) -> Result<(), Error> {
        if (virt as i64) << 16 >> 16 != virt as i64 {
            return Err(Error::NotCanonical { virt });
        }
        let mut table = self.root;
        for above in (level + 1..4).rev() {
            let slot = slot(table, virt, above);
            let entry: u64 = self.memory.read_obj(slot)?;
            if entry & LARGE != 0 {
                let offset = virt & (LARGE_PAGE - 1) & ADDRESS;
                let same = entry & ADDRESS & !(LARGE_PAGE - 1) | offset == target & ADDRESS;
                return if same { Ok(()) } else { Err(Error::Taken { virt }) };
            }
            table = if entry & PRESENT != 0 { entry & ADDRESS } else { self.add_table(slot)? };
        }
        let slot = slot(table, virt, level);
        let new = target | PRESENT | WRITABLE;
        let old: u64 = self.memory.read_obj(slot)?;
        if old & PRESENT != 0 && old != new {
            return Err(Error::Taken { virt });
        }
        Ok(self.memory.write_obj(new, slot)?)
    }

    fn add_table(&mut self, slot: GuestAddress) -> Result<u64, Error> {
        let table = self.next;
        if table >= self.end {
            return Err(Error::OutOfPages { pages: (self.end - self.root) / PAGE_SIZE });
        }
        self.next += PAGE_SIZE;
        self.memory.write_obj(table | PRESENT | WRITABLE, slot)?;
        Ok(table)
    }
}

fn slot(table: u64, virt: u64, level: u32) -> GuestAddress {
    GuestAddress(table + (virt >> (12 + 9 * level) & 0x1FF) * 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem;

    fn walk(memory: &GuestMemory, root: u64, virt: u64) -> Option<u64> {
        let mut table = root;
        for level in (0..4).rev() {
            let entry: u64 = memory.read_obj(slot(table, virt, level)).unwrap();
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 0 || entry & LARGE != 0 {
                let mask = (1 << (12 + 9 * level)) - 1;
                return Some(entry & ADDRESS & !mask | virt & mask);
            }
            table = entry & ADDRESS;
        }
        None
    }

    #[test]
    fn identity_and_higher_half() {
        let memory = mem::create(16 << 20).unwrap();
        let mut tables = PageTables::new(&memory, GuestAddress(0x8_0000), 16);
        tables.map(0, 0, 4 << 30).unwrap();
        tables.map(0xFFFF_FFFF_8010_0000, 0x10_0000, 0x30_1000).unwrap();
        let root = tables.root();
        for virt in [0, 0x1000, 0x12_3456, 0xC000_0000, 0xFFFF_FFFF] {
            assert_eq!(walk(&memory, root, virt), Some(virt));
        }
        assert_eq!(walk(&memory, root, 1 << 32), None);
        assert_eq!(walk(&memory, root, 0xFFFF_FFFF_8012_3456), Some(0x12_3456));
        assert_eq!(walk(&memory, root, 0xFFFF_FFFF_8040_0FFF), Some(0x40_0FFF));
        assert_eq!(walk(&memory, root, 0xFFFF_FFFF_8040_1000), None);
        assert_eq!(walk(&memory, root, 0xFFFF_FFFF_800F_F000), None);
    }

    #[test]
    fn identity_goes_around_what_is_mapped() {
        let memory = mem::create(16 << 20).unwrap();
        let mut tables = PageTables::new(&memory, GuestAddress(0x8_0000), 16);
        tables.map(0x40_2000, 0x10_0000, 0x1000).unwrap();
        tables.map(0x60_0000, 0x80_0000, 0x20_0000).unwrap();
        tables.fill_identity(4).unwrap();
        let root = tables.root();
        for (virt, phys) in [
            (0x40_1FFF, 0x40_1FFF),
            (0x40_2000, 0x10_0000),
            (0x40_3000, 0x40_3000),
            (0x60_0000, 0x80_0000),
            (0x80_0000, 0x80_0000),
            (0xFFFF_FFFF, 0xFFFF_FFFF),
        ] {
            assert_eq!(walk(&memory, root, virt), Some(phys), "{virt:#x}");
        }
    }

    #[test]
    fn a_page_inside_a_large_page_keeps_its_place() {
        let memory = mem::create(1 << 20).unwrap();
        let mut tables = PageTables::new(&memory, GuestAddress(0), 8);
        tables.map(0, 0, 2 << 20).unwrap();
        tables.map(0x3000, 0x3000, 4096).unwrap();
        assert!(matches!(tables.map(0x3000, 0x4000, 4096), Err(Error::Taken { virt: 0x3000 })));
    }

    #[test]
    fn the_last_page_of_the_address_space() {
        let memory = mem::create(1 << 20).unwrap();
        let mut tables = PageTables::new(&memory, GuestAddress(0), 8);
        tables.map(0xFFFF_FFFF_FFFF_F000, 0x5000, 0x1000).unwrap();
        tables.map(0xFFFF_FFFF_FFFF_F000, 0x5000, 0xFFF).unwrap();
        assert_eq!(walk(&memory, tables.root(), 0xFFFF_FFFF_FFFF_FFFF), Some(0x5FFF));
    }

    #[test]
    fn what_cannot_be_mapped_is_an_error() {
        let memory = mem::create(1 << 20).unwrap();
        let mut tables = PageTables::new(&memory, GuestAddress(0), 4);
        assert!(matches!(tables.map(1 << 47, 0, 1), Err(Error::NotCanonical { .. })));
        tables.map(0, 0, 4096).unwrap();
        tables.map(0, 0, 4096).unwrap();
        assert!(matches!(tables.map(0, 4096, 4096), Err(Error::Taken { .. })));
        assert!(matches!(tables.map(1 << 30, 0, 4096), Err(Error::OutOfPages { pages: 4 })));
    }
}
