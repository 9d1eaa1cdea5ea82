//! The way of a linear address through the guest's own page tables, in every paging mode
//! (Intel SDM Vol. 3A chapter 5; AMD APM Vol. 2 chapter 5).
//!
//! Called by debuggers and autopsies, on a vCPU that stands still. Says where an address
//! leads, not whether an access of some kind would be allowed there: a debugger reads what
//! the guest may not.

use std::fmt;

use serde::Serialize;
use vm_memory::{Bytes, GuestAddress};

use super::cpuid::Leaf;
use super::{CpuState, Cr0, Cr4, Efer};
use crate::mem::GuestMemory;

const PRESENT: u64 = 1 << 0;
/// PS: the entry maps a large page.
const LARGE: u64 = 1 << 7;
/// Bits 51 to 12 of an entry of eight bytes.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// What CPUID says of a processor's page tables (Intel SDM Vol. 3A 5.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagingFeatures {
    /// Bits of a physical address: 32 to 52.
    pub physical_bits: u32,
    /// An entry of level 3 may map 1 GiB; where it may not, its PS bit is reserved.
    pub gigabyte_pages: bool,
}

impl PagingFeatures {
    /// All that there is in any processor: nothing is taken for reserved that may not be.
    pub const ALL: Self = Self { physical_bits: 52, gigabyte_pages: true };

    /// Of a processor with this CPUID: 0x80000008 (36 bits where it has no such leaf), and bit 26
    /// of 0x80000001's EDX.
    pub fn of(leaves: &[Leaf]) -> Self {
        let leaf = |function| leaves.iter().find(|leaf| leaf.function == function);
        Self {
            physical_bits: leaf(0x8000_0008).map_or(36, |leaf| leaf.eax & 0xFF).clamp(32, 52),
            gigabyte_pages: leaf(0x8000_0001).is_some_and(|leaf| leaf.edx >> 26 & 1 != 0),
        }
    }
}

/// How linear addresses become physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Paging {
    /// Paging is off: they are the same, 32 bits wide.
    Off,
    /// Two levels of entries of four bytes.
    Bits32,
    /// Three levels of entries of eight bytes, the top one with four of them.
    Pae,
    /// Long mode, four levels.
    Level4,
    /// Long mode, five levels.
    Level5,
}

impl Paging {
    /// The mode that a processor is in.
    pub fn of(cpu: &CpuState) -> Self {
        if !cpu.cr0.contains(Cr0::PG) {
            Self::Off
        } else if !cpu.cr4.contains(Cr4::PAE) {
            Self::Bits32
        } else if !cpu.efer.contains(Efer::LMA) {
            Self::Pae
        } else if cpu.cr4.contains(Cr4::LA57) {
            Self::Level5
        } else {
            Self::Level4
        }
    }

    /// Levels of tables.
    pub fn levels(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::Bits32 => 2,
            Self::Pae => 3,
            Self::Level4 => 4,
            Self::Level5 => 5,
        }
    }

    fn is_long(self) -> bool {
        matches!(self, Self::Level4 | Self::Level5)
    }

    /// Bits of a linear address.
    fn width(self) -> u32 {
        match self {
            Self::Level4 => 48,
            Self::Level5 => 57,
            _ => 32,
        }
    }

    /// Can the processor form this address?
    fn is_valid(self, linear: u64) -> bool {
        let unused = 64 - self.width();
        match self.is_long() {
            true => ((linear << unused) as i64 >> unused) as u64 == linear,
            false => linear >> 32 == 0,
        }
    }
}

/// One entry on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// 1 is the level whose entries map 4 KiB pages.
    pub level: u32,
    /// Guest-physical address of the entry.
    pub address: u64,
    /// What it holds.
    pub entry: u64,
}

/// Where a way ended before it reached a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Break {
    /// The address is not canonical, or wider than 32 bits outside long mode.
    NotCanonical,
    /// The entry of this level is not present.
    NotPresent {
        /// The level.
        level: u32,
    },
    /// The entry of this level has PS set, which is reserved there.
    Reserved {
        /// The level.
        level: u32,
    },
    /// There is no memory where the entry of this level should be.
    NoMemory {
        /// The level.
        level: u32,
        /// Guest-physical address.
        address: u64,
    },
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCanonical => write!(f, "not an address that the processor can form"),
            Self::NotPresent { level } => write!(f, "the entry of level {level} is not present"),
            Self::Reserved { level } => {
                write!(f, "the entry of level {level} has its reserved bit 7 set")
            }
            Self::NoMemory { level, address } => {
                write!(f, "no memory at {address:#x}, where the entry of level {level} should be")
            }
        }
    }
}

/// The way of one linear address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Walk {
    /// The paging mode.
    pub paging: Paging,
    /// The entries that were read, the top level first.
    pub steps: Vec<Step>,
    /// The guest-physical address, or where the way broke.
    pub end: Result<u64, Break>,
}

/// Walks the page tables that `cpu` uses.
///
/// With PAE paging the processor holds the four top entries in registers that it loads with
/// CR3 (Intel SDM Vol. 3A 5.4.1); here they are read from memory, so a guest that changed
/// them without loading CR3 again is shown what it will get.
pub fn walk(memory: &GuestMemory, cpu: &CpuState, linear: u64) -> Walk {
    let paging = Paging::of(cpu);
    let mut walk = Walk { paging, steps: Vec::new(), end: Ok(linear) };
    if !paging.is_valid(linear) {
        walk.end = Err(Break::NotCanonical);
        return walk;
    }
    let mut table = match paging {
        Paging::Off => return walk,
        Paging::Bits32 => cpu.cr3 & 0xFFFF_F000,
        Paging::Pae => cpu.cr3 & 0xFFFF_FFE0,
        Paging::Level4 | Paging::Level5 => cpu.cr3 & ADDRESS,
    };
    for level in (1..=paging.levels()).rev() {
        let step = match read_entry(memory, paging, table, linear, level) {
            Ok(step) => step,
            Err(address) => {
                walk.end = Err(Break::NoMemory { level, address });
                return walk;
            }
        };
        walk.steps.push(step);
        if step.entry & PRESENT == 0 {
            walk.end = Err(Break::NotPresent { level });
            return walk;
        }
        if is_reserved(paging, cpu, level, step.entry) {
            walk.end = Err(Break::Reserved { level });
            return walk;
        }
        if level == 1 || is_large(paging, cpu, level, step.entry) {
            walk.end = Ok(page(paging, level, step.entry, linear));
            return walk;
        }
        table = step.entry & ADDRESS;
    }
    walk
}

/// The guest-physical address behind a linear one; `None` where nothing is mapped.
pub fn translate(memory: &GuestMemory, cpu: &CpuState, linear: u64) -> Option<u64> {
    walk(memory, cpu, linear).end.ok()
}

/// Bits of a linear address below the index of `level`.
fn shift(paging: Paging, level: u32) -> u32 {
    12 + (level - 1) * if paging == Paging::Bits32 { 10 } else { 9 }
}

/// Reads the entry of `level`; the error is its address, where no memory is.
fn read_entry(
    memory: &GuestMemory,
    paging: Paging,
    table: u64,
    linear: u64,
    level: u32,
) -> Result<Step, u64> {
    let index = linear >> shift(paging, level);
    let (address, entry) = if paging == Paging::Bits32 {
        let address = table + (index & 0x3FF) * 4;
        (address, memory.read_obj::<u32>(GuestAddress(address)).map(u64::from))
    } else {
        let slots = if paging == Paging::Pae && level == 3 { 4 } else { 512 };
        let address = table + (index & (slots - 1)) * 8;
        (address, memory.read_obj::<u64>(GuestAddress(address)))
    };
    entry.map(|entry| Step { level, address, entry }).map_err(|_| address)
}

/// Is PS set where the processor has no page of that size? With PAE it looks at the top level
/// when it loads CR3.
fn is_reserved(paging: Paging, cpu: &CpuState, level: u32, entry: u64) -> bool {
    let reserved_from = if cpu.paging_features.gigabyte_pages { 4 } else { 3 };
    paging.is_long() && level >= reserved_from && entry & LARGE != 0
}

/// Does the entry map a large page? PS is reserved in the top levels of long mode, and PAE's top
/// level has none.
fn is_large(paging: Paging, cpu: &CpuState, level: u32, entry: u64) -> bool {
    let possible = match paging {
        Paging::Bits32 => level == 2 && cpu.cr4.contains(Cr4::PSE),
        Paging::Pae => level == 2,
        _ => level == 2 || level == 3,
    };
    possible && entry & LARGE != 0
}

/// The address in the page that a last entry maps.
fn page(paging: Paging, level: u32, entry: u64, linear: u64) -> u64 {
    let offset = (1 << shift(paging, level)) - 1;
    let base = match (paging, level) {
        // Bits 39 to 32 of a 4 MiB page lie in bits 20 to 13 (Intel SDM Vol. 3A, table 5-4).
        (Paging::Bits32, 2) => entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32,
        _ => entry & ADDRESS,
    };
    base & !offset | linear & offset
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem;
    use crate::x86::CpuInit;

    const CR3: u64 = 0x10_0000;

    fn cpu(cr0: Cr0, cr4: Cr4, efer: Efer) -> CpuState {
        CpuState { cr0, cr4, efer, cr3: CR3, ..(&CpuInit::protected(0, 8, 16)).into() }
    }

    fn paged(cr4: Cr4, efer: Efer) -> CpuState {
        cpu(Cr0::PE | Cr0::PG, cr4, efer)
    }

    fn memory() -> GuestMemory {
        mem::create(4 << 20).unwrap()
    }

    fn put(memory: &GuestMemory, address: u64, entry: u64) {
        memory.write_obj(entry, GuestAddress(address)).unwrap();
    }

    #[test]
    fn without_paging_addresses_are_32_bits_and_the_same() {
        let (memory, cpu) = (memory(), cpu(Cr0::PE, Cr4::empty(), Efer::empty()));
        assert_eq!(translate(&memory, &cpu, 0xFFFF_FFF0), Some(0xFFFF_FFF0));
        assert_eq!(translate(&memory, &cpu, 1 << 32), None);
    }

    #[test]
    fn two_levels_of_four_bytes() {
        let (memory, cpu) = (memory(), paged(Cr4::PSE, Efer::empty()));
        let put = |address, entry: u32| memory.write_obj(entry, GuestAddress(address)).unwrap();
        put(CR3 + 0x300 * 4, 0x10_1000 | 3);
        put(0x10_1000 + 5 * 4, 0x0004_2000 | 3);
        put(CR3 + 4, 0x0180_0000 | 0x2 << 13 | 0x83);
        assert_eq!(translate(&memory, &cpu, 0xC000_5678), Some(0x4_2678));
        assert_eq!(translate(&memory, &cpu, 0x40_1234), Some(0x2_0180_1234));
        let broken = walk(&memory, &cpu, 0xC000_6000);
        assert_eq!(broken.end, Err(Break::NotPresent { level: 1 }));
        assert_eq!(broken.steps.len(), 2);
        // Without PSE the same entry leads to a table, and there is no memory for it.
        let cpu = paged(Cr4::empty(), Efer::empty());
        assert_eq!(
            walk(&memory, &cpu, 0x40_1234).end,
            Err(Break::NoMemory { level: 1, address: 0x180_4004 })
        );
    }

    #[test]
    fn pae_starts_with_four_entries_at_any_32_bytes() {
        let memory = memory();
        let mut cpu = paged(Cr4::PAE, Efer::empty());
        cpu.cr3 = CR3 + 0x20;
        put(&memory, CR3 + 0x20 + 3 * 8, 0x10_1000 | 1);
        put(&memory, 0x10_1000 + 8, 0x5_0000_0000 | 0x83);
        put(&memory, 0x10_1000 + 2 * 8, 0x10_2000 | 3);
        put(&memory, 0x10_2000, 1 << 63 | 0x4_2000 | 3);
        assert_eq!(translate(&memory, &cpu, 0xC020_1234), Some(0x5_0000_1234));
        assert_eq!(translate(&memory, &cpu, 0xC040_0234), Some(0x4_2234));
        assert_eq!(walk(&memory, &cpu, 0x1000).end, Err(Break::NotPresent { level: 3 }));
    }

    #[test]
    fn four_levels_with_pages_of_every_size() {
        let (memory, cpu) = (memory(), paged(Cr4::PAE, Efer::LMA));
        put(&memory, CR3 + 511 * 8, 0x10_1000 | 3);
        put(&memory, 0x10_1000 + 510 * 8, 0x10_2000 | 3);
        put(&memory, 0x10_1000 + 511 * 8, 0x8000_0000 | 0x83);
        put(&memory, 0x10_2000, 0x10_3000 | 3);
        put(&memory, 0x10_2000 + 8, 0x60_0000 | 0x83);
        put(&memory, 0x10_3000 + 8, 0x4_2000 | 3);
        assert_eq!(translate(&memory, &cpu, 0xFFFF_FFFF_8000_1234), Some(0x4_2234));
        assert_eq!(translate(&memory, &cpu, 0xFFFF_FFFF_8020_1234), Some(0x60_1234));
        assert_eq!(translate(&memory, &cpu, 0xFFFF_FFFF_C123_4567), Some(0x8123_4567));
        assert_eq!(walk(&memory, &cpu, 1 << 47).end, Err(Break::NotCanonical));
        assert_eq!(walk(&memory, &cpu, 0).end, Err(Break::NotPresent { level: 4 }));
        let full = walk(&memory, &cpu, 0xFFFF_FFFF_8000_1234);
        assert_eq!(full.steps.iter().map(|step| step.level).collect::<Vec<_>>(), [4, 3, 2, 1]);
        assert_eq!(full.steps[3], Step { level: 1, address: 0x10_3008, entry: 0x4_2003 });
    }

    #[test]
    fn a_gigabyte_is_a_page_only_where_cpuid_says_so() {
        let (memory, mut cpu) = (memory(), paged(Cr4::PAE, Efer::LMA));
        put(&memory, CR3, 0x10_1000 | 3);
        put(&memory, CR3 + 8, 0x10_1000 | 0x83);
        put(&memory, 0x10_1000, 0x83);
        assert_eq!(translate(&memory, &cpu, 0x1234), Some(0x1234));
        let top = walk(&memory, &cpu, 1 << 39);
        assert_eq!(top.end, Err(Break::Reserved { level: 4 }));
        cpu.paging_features.gigabyte_pages = false;
        assert_eq!(walk(&memory, &cpu, 0x1234).end, Err(Break::Reserved { level: 3 }));
    }

    #[test]
    fn cpuid_tells_of_page_tables() {
        let leaf = |function, eax, edx| Leaf { function, eax, edx, ..Leaf::default() };
        let of = PagingFeatures::of;
        assert_eq!(of(&[]), PagingFeatures { physical_bits: 36, gigabyte_pages: false });
        let leaves = [leaf(0x8000_0001, 0, 1 << 26), leaf(0x8000_0008, 0x3028, 0)];
        assert_eq!(of(&leaves), PagingFeatures { physical_bits: 40, gigabyte_pages: true });
    }

    #[test]
    fn five_levels() {
        let (memory, cpu) = (memory(), paged(Cr4::PAE | Cr4::LA57, Efer::LMA));
        put(&memory, CR3 + 8, 0x10_1000 | 3);
        put(&memory, 0x10_1000, 0x10_2000 | 3);
        put(&memory, 0x10_2000, 0x4000_0000 | 0x83);
        assert_eq!(translate(&memory, &cpu, 1 << 48 | 0x1234), Some(0x4000_1234));
        assert_eq!(walk(&memory, &cpu, 1 << 56).end, Err(Break::NotCanonical));
    }

    #[test]
    fn tables_outside_memory_are_said() {
        let memory = memory();
        let mut cpu = paged(Cr4::PAE, Efer::LMA);
        cpu.cr3 = 0xD000_0000;
        let end = walk(&memory, &cpu, 0).end;
        assert_eq!(end, Err(Break::NoMemory { level: 4, address: 0xD000_0000 }));
    }
}
