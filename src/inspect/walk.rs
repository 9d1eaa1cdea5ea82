//! The guest's address space as its processor sees it: the page walk, level by level, and
//! access to memory through it (Intel SDM Vol. 3A 5.3 to 5.6).
//!
//! Reads guest memory only; a lying page table is a finding, never an error of ours.

use std::fmt;

use serde::Serialize;

use crate::mem::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend};
use crate::x86::{CpuState, Cr0, Cr4, Efer, Rflags};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// How linear addresses become physical ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Paging {
    /// Not at all: they are the same.
    Off,
    /// Two levels of 32-bit entries.
    TwoLevel,
    /// Three levels of 64-bit entries.
    Pae,
    /// Long mode's four levels.
    FourLevel,
    /// Long mode's five levels.
    FiveLevel,
}

impl Paging {
    /// Of a vCPU in this state.
    pub fn of(cpu: &CpuState) -> Self {
        match () {
            () if !cpu.cr0.contains(Cr0::PG | Cr0::PE) => Self::Off,
            () if cpu.efer.contains(Efer::LMA) && cpu.cr4.contains(Cr4::LA57) => Self::FiveLevel,
            () if cpu.efer.contains(Efer::LMA) => Self::FourLevel,
            () if cpu.cr4.contains(Cr4::PAE) => Self::Pae,
            () => Self::TwoLevel,
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::TwoLevel => "of two levels",
            Self::Pae => "of three levels (PAE)",
            Self::FourLevel => "of four levels",
            Self::FiveLevel => "of five levels",
        }
    }

    /// The names of its levels, and the lowest bit of a linear address that each decodes.
    fn levels(self) -> &'static [(&'static str, u32)] {
        match self {
            Self::Off => &[],
            Self::TwoLevel => &[("PD", 22), ("PT", 12)],
            Self::Pae => &[("PDPT", 30), ("PD", 21), ("PT", 12)],
            Self::FourLevel => &[("PML4", 39), ("PDPT", 30), ("PD", 21), ("PT", 12)],
            Self::FiveLevel => &[("PML5", 48), ("PML4", 39), ("PDPT", 30), ("PD", 21), ("PT", 12)],
        }
    }
}

/// What is done to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// A read.
    Read,
    /// A write.
    Write,
    /// An instruction fetch.
    Execute,
}

impl Access {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Execute => "instruction fetch",
        }
    }
}

/// One entry on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Level {
    /// PML5, PML4, PDPT, PD or PT.
    pub table: &'static str,
    /// Which of the table's entries.
    pub index: u64,
    /// Where it lies in guest-physical memory.
    pub at: u64,
    /// Its value; `None` where no memory is.
    pub entry: Option<u64>,
}

/// Where a walk ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum End {
    /// At a page.
    Page {
        /// The guest-physical address.
        physical: u64,
        /// Bytes of the page.
        size: u64,
        /// Every level allows writes.
        writable: bool,
        /// Every level allows ring 3.
        user: bool,
        /// No level forbids execution.
        executable: bool,
        /// There is memory behind it.
        memory: bool,
    },
    /// At an entry that is not present.
    NotPresent,
    /// At an entry with a reserved bit set.
    Reserved {
        /// The lowest of them.
        bit: u32,
    },
    /// At a table where no memory is.
    NoTable,
    /// Before it began: the address is not canonical.
    NotCanonical,
}

/// The way from a linear to a physical address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Walk {
    /// The linear address.
    pub linear: u64,
    /// The entries that were read.
    pub levels: Vec<Level>,
    /// Where it ends.
    #[serde(flatten)]
    pub end: End,
}

/// Why an access through page tables faults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PageFault {
    /// What CR2 will hold.
    pub address: u64,
    /// The error code (Intel SDM Vol. 3A 5.7).
    pub code: u32,
    /// What was tried.
    pub access: Access,
    /// Why it is refused, in words: "not present", "read-only page", ...
    pub why: String,
}

impl Walk {
    /// Where it leads, whatever may be done there; `None` where it breaks.
    pub fn physical(&self) -> Option<u64> {
        match self.end {
            End::Page { physical, .. } => Some(physical),
            _ => None,
        }
    }

    /// May ring 3 use the page, or may it once there are page tables (Intel SDM Vol. 3A 5.6: the
    /// U/S flag of every level)?
    pub fn may_be_ring3(&self) -> bool {
        self.levels.iter().all(|level| level.entry.is_none_or(|entry| entry & USER != 0))
    }
}

/// Where it leads, or where it breaks, in words.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPresent => f.write_str("not present"),
            Self::Reserved { bit } => write!(f, "reserved bit {bit} is set"),
            Self::NoTable => f.write_str("no memory there"),
            Self::NotCanonical => f.write_str("not canonical"),
            Self::Page { physical, size, writable, user, executable, memory } => {
                let right = |is: &bool, letter| if *is { letter } else { '-' };
                let rights = [right(writable, 'w'), right(executable, 'x'), right(user, 'u')];
                let rights: String = rights.iter().collect();
                write!(f, "{physical:#x}, {} page r{rights}", page_size(*size))?;
                f.write_str(if *memory { "" } else { ", no memory there" })
            }
        }
    }
}

fn page_size(bytes: u64) -> String {
    match bytes {
        0x1000 => "4K".to_owned(),
        bytes if bytes < 1 << 30 => format!("{}M", bytes >> 20),
        bytes => format!("{}G", bytes >> 30),
    }
}

/// A vCPU's linear addresses.
#[derive(Clone, Copy)]
pub struct AddressSpace<'m> {
    memory: &'m GuestMemory,
    cpu: &'m CpuState,
    paging: Paging,
}

impl<'m> AddressSpace<'m> {
    /// Of a vCPU in this state.
    pub fn new(memory: &'m GuestMemory, cpu: &'m CpuState) -> Self {
        Self { memory, cpu, paging: Paging::of(cpu) }
    }

    /// How it translates.
    pub fn paging(&self) -> Paging {
        self.paging
    }

    /// Bytes of linear addresses behind one entry of a table.
    pub(super) fn covered(&self, table: &str) -> u64 {
        let level = self.paging.levels().iter().find(|(name, _)| *name == table);
        level.map_or(1 << 12, |(_, shift)| 1 << shift)
    }

    /// Guest-physical memory.
    pub fn memory(&self) -> &'m GuestMemory {
        self.memory
    }

    /// Can an address register hold it in this mode?
    pub fn is_canonical(&self, linear: u64) -> bool {
        let sign = match self.paging {
            Paging::FourLevel => 47,
            Paging::FiveLevel => 56,
            _ => return linear <= u64::from(u32::MAX),
        };
        let top = linear as i64 >> sign;
        top == 0 || top == -1
    }

    /// The guest-physical address behind a linear one; `None` where nothing is mapped.
    pub fn physical(&self, linear: u64) -> Option<u64> {
        self.walk(linear).physical()
    }

    /// Walks the page tables for `linear`.
    ///
    /// With PAE paging the processor holds the four top entries in registers that it loads with
    /// CR3 (Intel SDM Vol. 3A 5.4.1); here they are read from memory, so a guest that changed
    /// them without loading CR3 again is shown what it will get.
    pub fn walk(&self, linear: u64) -> Walk {
        let mut walk = Walk { linear, levels: Vec::new(), end: End::NotCanonical };
        if !self.is_canonical(linear) {
            return walk;
        }
        let mut table = match self.paging {
            Paging::TwoLevel => self.cpu.cr3 & 0xFFFF_F000,
            Paging::Pae => self.cpu.cr3 & 0xFFFF_FFE0,
            _ => self.cpu.cr3 & ADDRESS,
        };
        let mut allowed = WRITABLE | USER;
        let mut forbidden = 0;
        let mut size = 1 << 12;
        for (depth, &(name, shift)) in self.paging.levels().iter().enumerate() {
            let level = self.level(name, table, linear, shift);
            let entry = level.entry;
            walk.levels.push(level);
            let Some(entry) = entry else {
                walk.end = End::NoTable;
                return walk;
            };
            if entry & PRESENT == 0 {
                walk.end = End::NotPresent;
                return walk;
            }
            let large = self.is_large(name, entry);
            if let Some(bit) = self.reserved(name, entry, large) {
                walk.end = End::Reserved { bit };
                return walk;
            }
            // PAE's first level has no such bits (Intel SDM Vol. 3A, table 5-8).
            if !(self.paging == Paging::Pae && depth == 0) {
                allowed &= entry;
                forbidden |= entry;
            }
            size = 1_u64 << shift;
            table = self.frame(entry, large, size);
            if large {
                break;
            }
        }
        let physical = match self.paging {
            Paging::Off => linear,
            _ => table | linear & (size - 1),
        };
        walk.end = self.page(physical, size, allowed, forbidden);
        walk
    }

    fn page(&self, physical: u64, size: u64, allowed: u64, forbidden: u64) -> End {
        let no_execute = self.cpu.efer.contains(Efer::NXE) && forbidden & NO_EXECUTE != 0;
        End::Page {
            physical,
            size,
            writable: allowed & WRITABLE != 0,
            user: allowed & USER != 0,
            executable: self.paging == Paging::Off || !no_execute,
            memory: self.memory.address_in_range(GuestAddress(physical)),
        }
    }

    fn level(&self, table: &'static str, base: u64, linear: u64, shift: u32) -> Level {
        let (width, mask) = match (self.paging, table) {
            (Paging::TwoLevel, _) => (4, 0x3FF),
            (Paging::Pae, "PDPT") => (8, 3),
            _ => (8, 0x1FF),
        };
        let index = linear >> shift & mask;
        let at = base + index * width;
        let entry = match width {
            4 => self.memory.read_obj::<u32>(GuestAddress(at)).map(u64::from),
            _ => self.memory.read_obj(GuestAddress(at)),
        };
        Level { table, index, at, entry: entry.ok() }
    }

    fn is_large(&self, table: &str, entry: u64) -> bool {
        entry & LARGE != 0
            && match (self.paging, table) {
                (Paging::TwoLevel, "PD") => self.cpu.cr4.contains(Cr4::PSE),
                (Paging::Pae | Paging::FourLevel | Paging::FiveLevel, "PD") => true,
                (Paging::FourLevel | Paging::FiveLevel, "PDPT") => {
                    self.cpu.paging_features.gigabyte_pages
                }
                _ => false,
            }
    }

    /// Where the next table, or the page, lies.
    fn frame(&self, entry: u64, large: bool, size: u64) -> u64 {
        match self.paging {
            // PSE-36: bits 13 to 20 are bits 32 to 39 of the address (Vol. 3A, table 5-4).
            Paging::TwoLevel if large => (entry & 0xFFC0_0000) | (entry >> 13 & 0xFF) << 32,
            Paging::TwoLevel => entry & 0xFFFF_F000,
            _ if large => entry & ADDRESS & !(size - 1),
            _ => entry & ADDRESS,
        }
    }

    /// The lowest reserved bit that is set.
    fn reserved(&self, table: &str, entry: u64, large: bool) -> Option<u32> {
        let above = self.above();
        let no_nxe = if self.cpu.efer.contains(Efer::NXE) { 0 } else { NO_EXECUTE };
        let inside = match (table, large) {
            ("PDPT", true) => 0x3FFF_E000,
            ("PD", true) => 0x001F_E000,
            // No page is as large as that (Intel SDM Vol. 3A 5.5.4).
            ("PDPT", false) => LARGE,
            _ => 0,
        };
        let mask = match (self.paging, table) {
            (Paging::Off, _) => 0,
            (Paging::TwoLevel, _) => u64::from(large) << 21,
            (Paging::Pae, "PDPT") => above | 0x1E6,
            (Paging::Pae, _) => above & !NO_EXECUTE | no_nxe | inside,
            (_, "PML5" | "PML4") => above & 0x000F_FFFF_FFFF_FFFF | no_nxe | LARGE,
            _ => above & 0x000F_FFFF_FFFF_FFFF | no_nxe | inside,
        };
        let wrong = entry & mask;
        (wrong != 0).then(|| wrong.trailing_zeros())
    }

    /// The physical address behind `linear`, or why this access to it by ring 0 (or, with
    /// `user`, ring 3) faults. A non-canonical address is the caller's to find.
    pub fn translate(&self, linear: u64, access: Access, user: bool) -> Result<u64, PageFault> {
        let walk = self.walk(linear);
        let fault = |present: bool, reserved: bool, why: String| {
            let fetch = access == Access::Execute
                && (self.cpu.efer.contains(Efer::NXE) || self.cpu.cr4.contains(Cr4::SMEP));
            let code = u32::from(present)
                | u32::from(access == Access::Write) << 1
                | u32::from(user) << 2
                | u32::from(reserved) << 3
                | u32::from(fetch) << 4;
            Err(PageFault { address: linear, code, access, why })
        };
        let last = walk.levels.last().map_or("page", |level| level.table);
        match walk.end {
            End::Page { physical, .. } => match self.refusal(&walk.end, access, user) {
                None => Ok(physical),
                Some(why) => fault(true, false, why.to_owned()),
            },
            End::NotPresent => fault(false, false, "not present".to_owned()),
            End::Reserved { bit } => {
                fault(true, true, format!("reserved bit {bit} is set in its {last} entry"))
            }
            End::NoTable => fault(false, false, format!("its {last} lies where no memory is")),
            End::NotCanonical => fault(false, false, "not canonical".to_owned()),
        }
    }

    fn refusal(&self, end: &End, access: Access, user: bool) -> Option<&'static str> {
        let End::Page { writable, user: user_page, executable, .. } = *end else { return None };
        if self.paging == Paging::Off {
            return None;
        }
        let (cr0, cr4) = (self.cpu.cr0, self.cpu.cr4);
        match access {
            _ if user && !user_page => Some("supervisor page"),
            Access::Execute if !executable => Some("no-execute page"),
            Access::Execute if !user && user_page && cr4.contains(Cr4::SMEP) => {
                Some("user page, and SMEP")
            }
            Access::Read | Access::Write
                if !user
                    && user_page
                    && cr4.contains(Cr4::SMAP)
                    && !self.cpu.rflags.contains(Rflags::AC) =>
            {
                Some("user page, and SMAP")
            }
            Access::Write if !writable && (user || cr0.contains(Cr0::WP)) => Some("read-only page"),
            _ => None,
        }
    }

    /// The bits above those of a physical address.
    fn above(&self) -> u64 {
        !((1_u64 << self.cpu.paging_features.physical_bits.clamp(32, 52)) - 1)
    }

    /// What there is against `value` for CR3.
    pub(super) fn bad_cr3(&self, value: u64) -> Option<String> {
        let above = self.above();
        if matches!(self.paging, Paging::FourLevel | Paging::FiveLevel) {
            // Bit 63 asks for no flush (with PCIDE), 61 and 62 for linear-address masking.
            let wrong = value & above & !(7 << 61);
            return (wrong != 0).then(|| {
                let bit = wrong.trailing_zeros();
                let bits = self.cpu.paging_features.physical_bits;
                format!("bit {bit} lies above its {bits}-bit physical addresses")
            });
        }
        if self.paging != Paging::Pae {
            return None;
        }
        // With PAE the load reads the four top entries, and checks them.
        (0..4).find_map(|index| {
            let at = GuestAddress((value & 0xFFFF_FFE0) + index * 8);
            let entry = self.memory.read_obj::<u64>(at).ok().filter(|it| it & PRESENT != 0)?;
            let bit = self.reserved("PDPT", entry, false)?;
            Some(format!("reserved bit {bit} is set in PDPT entry {index}"))
        })
    }

    /// Reads as a debugger does, whatever the pages allow; the number of bytes that there
    /// were from the start.
    pub fn peek(&self, linear: u64, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buffer.len() {
            let at = linear.wrapping_add(done as u64);
            let End::Page { physical, size, .. } = self.walk(at).end else { break };
            let in_page = (size - (at & (size - 1))).min((buffer.len() - done) as u64) as usize;
            let chunk = &mut buffer[done..done + in_page];
            match self.memory.read(chunk, GuestAddress(physical)) {
                Ok(0) | Err(_) => break,
                Ok(n) => done += n,
            }
        }
        done
    }

    /// A little-endian number of `size` bytes (8 at most).
    pub fn peek_number(&self, linear: u64, size: usize) -> Option<u64> {
        let mut bytes = [0; 8];
        let size = size.min(8);
        (self.peek(linear, &mut bytes[..size]) == size).then(|| u64::from_le_bytes(bytes))
    }
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

    fn physical(memory: &GuestMemory, cpu: &CpuState, linear: u64) -> Option<u64> {
        AddressSpace::new(memory, cpu).physical(linear)
    }

    fn put(memory: &GuestMemory, address: u64, entry: u64) {
        memory.write_obj(entry, GuestAddress(address)).unwrap();
    }

    #[test]
    fn without_paging_addresses_are_32_bits_and_the_same() {
        let (memory, cpu) = (memory(), cpu(Cr0::PE, Cr4::empty(), Efer::empty()));
        assert_eq!(physical(&memory, &cpu, 0xFFFF_FFF0), Some(0xFFFF_FFF0));
        assert_eq!(physical(&memory, &cpu, 1 << 32), None);
    }

    #[test]
    fn two_levels_of_four_bytes() {
        let (memory, cpu) = (memory(), paged(Cr4::PSE, Efer::empty()));
        let put = |address, entry: u32| memory.write_obj(entry, GuestAddress(address)).unwrap();
        put(CR3 + 0x300 * 4, 0x10_1000 | 3);
        put(0x10_1000 + 5 * 4, 0x0004_2000 | 3);
        put(CR3 + 4, 0x0180_0000 | 0x2 << 13 | 0x83);
        assert_eq!(physical(&memory, &cpu, 0xC000_5678), Some(0x4_2678));
        assert_eq!(physical(&memory, &cpu, 0x40_1234), Some(0x2_0180_1234));
        let broken = AddressSpace::new(&memory, &cpu).walk(0xC000_6000);
        assert_eq!(broken.end, End::NotPresent);
        assert_eq!(broken.levels.len(), 2);
        // Without PSE the same entry leads to a table, and there is no memory for it.
        let cpu = paged(Cr4::empty(), Efer::empty());
        assert_eq!(AddressSpace::new(&memory, &cpu).walk(0x40_1234).end, End::NoTable);
    }

    #[test]
    fn pae_starts_with_four_entries_at_any_32_bytes() {
        let memory = memory();
        let mut cpu = paged(Cr4::PAE, Efer::NXE);
        cpu.cr3 = CR3 + 0x20;
        put(&memory, CR3 + 0x20 + 3 * 8, 0x10_1000 | 1);
        put(&memory, 0x10_1000 + 8, 0x5_0000_0000 | 0x83);
        put(&memory, 0x10_1000 + 2 * 8, 0x10_2000 | 3);
        put(&memory, 0x10_2000, 1 << 63 | 0x4_2000 | 3);
        assert_eq!(physical(&memory, &cpu, 0xC020_1234), Some(0x5_0000_1234));
        assert_eq!(physical(&memory, &cpu, 0xC040_0234), Some(0x4_2234));
        assert_eq!(AddressSpace::new(&memory, &cpu).walk(0x1000).end, End::NotPresent);
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
        assert_eq!(physical(&memory, &cpu, 0xFFFF_FFFF_8000_1234), Some(0x4_2234));
        assert_eq!(physical(&memory, &cpu, 0xFFFF_FFFF_8020_1234), Some(0x60_1234));
        assert_eq!(physical(&memory, &cpu, 0xFFFF_FFFF_C123_4567), Some(0x8123_4567));
        assert_eq!(AddressSpace::new(&memory, &cpu).walk(1 << 47).end, End::NotCanonical);
        assert_eq!(AddressSpace::new(&memory, &cpu).walk(0).end, End::NotPresent);
        let full = AddressSpace::new(&memory, &cpu).walk(0xFFFF_FFFF_8000_1234);
        let tables: Vec<_> = full.levels.iter().map(|level| level.table).collect();
        assert_eq!(tables, ["PML4", "PDPT", "PD", "PT"]);
        let last = Level { table: "PT", index: 1, at: 0x10_3008, entry: Some(0x4_2003) };
        assert_eq!(full.levels[3], last);
    }

    #[test]
    fn a_gigabyte_is_a_page_only_where_cpuid_says_so() {
        let (memory, mut cpu) = (memory(), paged(Cr4::PAE, Efer::LMA));
        put(&memory, CR3, 0x10_1000 | 3);
        put(&memory, CR3 + 8, 0x10_1000 | 0x83);
        put(&memory, 0x10_1000, 0x83);
        assert_eq!(physical(&memory, &cpu, 0x1234), Some(0x1234));
        let top = AddressSpace::new(&memory, &cpu).walk(1 << 39);
        assert_eq!(top.end, End::Reserved { bit: 7 });
        cpu.paging_features.gigabyte_pages = false;
        assert_eq!(AddressSpace::new(&memory, &cpu).walk(0x1234).end, End::Reserved { bit: 7 });
    }

    #[test]
    fn five_levels() {
        let (memory, cpu) = (memory(), paged(Cr4::PAE | Cr4::LA57, Efer::LMA));
        put(&memory, CR3 + 8, 0x10_1000 | 3);
        put(&memory, 0x10_1000, 0x10_2000 | 3);
        put(&memory, 0x10_2000, 0x4000_0000 | 0x83);
        assert_eq!(physical(&memory, &cpu, 1 << 48 | 0x1234), Some(0x4000_1234));
        assert_eq!(AddressSpace::new(&memory, &cpu).walk(1 << 56).end, End::NotCanonical);
    }

    #[test]
    fn tables_outside_memory_are_said() {
        let memory = memory();
        let mut cpu = paged(Cr4::PAE, Efer::LMA);
        cpu.cr3 = 0xD000_0000;
        let end = AddressSpace::new(&memory, &cpu).walk(0).end;
        assert_eq!(end, End::NoTable);
    }
}
