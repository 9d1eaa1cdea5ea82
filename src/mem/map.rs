//! What lies where in the guest's physical address space.

use serde::Serialize;

use super::layout::{ACPI_TABLES, HIGH_RAM_START, HOLE_END, HOLE_START, LOW_RAM_END};

/// A half-open range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
}

impl Range {
    /// `len` bytes from `start`; `None` where that leaves 64 bits.
    pub fn sized(start: u64, len: u64) -> Option<Self> {
        Some(Self { start, end: start.checked_add(len)? })
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Has it no byte?
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// Do they share a byte?
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }

    /// Is all of `other` inside?
    pub fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

/// What a range is to the guest. The numbers are those of ACPI's address range types
/// (ACPI 6.5, table 15.4), which E820, multiboot and PVH share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u32)]
pub enum Kind {
    /// Usable memory.
    Ram = 1,
    /// Not for the guest's use.
    Reserved = 2,
}

/// The memory map that every boot protocol tells the guest, each in its own form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryMap {
    /// Bytes of RAM.
    pub ram: u64,
    /// In ascending order, without overlap.
    pub entries: Vec<(Range, Kind)>,
}

/// Where the RAM itself is: below the 32-bit hole, and what is left above 4 GiB.
pub(super) fn regions(ram: u64) -> Vec<Range> {
    let mut regions = vec![Range { start: 0, end: ram.min(HOLE_START) }];
    if ram > HOLE_START {
        // Saturates only for sizes that no host can map; the mapping then says so.
        regions.push(Range { start: HOLE_END, end: HOLE_END.saturating_add(ram - HOLE_START) });
    }
    regions
}

impl MemoryMap {
    /// The map of a machine with `ram` bytes, at least 1 MiB.
    pub fn new(ram: u64) -> Self {
        let entry = |start, end, kind| (Range { start, end }, kind);
        let mut entries = vec![
            entry(0, LOW_RAM_END, Kind::Ram),
            // The extended BIOS data area, and the ROM with ACPI tables and BIOS stub. Between them
            // lies VGA memory, which real machines leave out of the map altogether.
            entry(LOW_RAM_END, super::layout::VGA_START, Kind::Reserved),
            entry(ACPI_TABLES, HIGH_RAM_START, Kind::Reserved),
        ];
        for region in regions(ram) {
            let start = region.start.max(HIGH_RAM_START);
            if start < region.end {
                entries.push(entry(start, region.end, Kind::Ram));
            }
        }
        Self { ram, entries }
    }

    /// The usable ranges, in ascending order.
    pub fn usable(&self) -> impl Iterator<Item = Range> + '_ {
        self.entries.iter().filter(|(_, kind)| *kind == Kind::Ram).map(|(range, _)| *range)
    }

    /// Is there RAM behind all of `range`? VGA and ROM space count: there is RAM behind
    /// them too, though no map shows it.
    pub fn has_ram(&self, range: &Range) -> bool {
        regions(self.ram).iter().any(|region| region.contains(range))
    }

    /// KiB of RAM above 1 MiB and below the hole: multiboot's `mem_upper`.
    pub fn upper_kib(&self) -> u64 {
        self.ram.min(HOLE_START).saturating_sub(HIGH_RAM_START) / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_machines_have_one_region() {
        let map = MemoryMap::new(128 << 20);
        let usable: Vec<_> = map.usable().collect();
        assert_eq!(usable[0], Range { start: 0, end: 0x9_FC00 });
        assert_eq!(usable[1], Range { start: 0x10_0000, end: 128 << 20 });
        assert_eq!(usable.len(), 2);
        assert_eq!(map.upper_kib(), 127 * 1024);
    }

    #[test]
    fn the_hole_is_never_ram() {
        for ram in [3_u64 << 30, (3 << 30) + 4096, 5 << 30] {
            let map = MemoryMap::new(ram);
            assert_eq!(regions(ram).iter().map(Range::len).sum::<u64>(), ram);
            assert!(map.usable().all(|r| !r.overlaps(&Range { start: HOLE_START, end: HOLE_END })));
            assert!(!map.has_ram(&Range { start: HOLE_START - 1, end: HOLE_START + 1 }));
        }
    }

    #[test]
    fn entries_ascend() {
        let map = MemoryMap::new(4 << 30);
        for pair in map.entries.windows(2) {
            assert!(pair[0].0.end <= pair[1].0.start);
        }
    }
}
