//! Who lies where in guest memory: what the image claims first, then what a boot
//! protocol adds wherever there is room.
//!
//! Called by the protocols; knows none of them. Guest memory is fresh, so that what
//! nobody wrote is zero.

use super::acpi::{self, Hardware};
use super::{Error, Placed, Request};
use crate::mem::{Bytes, GuestAddress, GuestMemory, MemoryMap, PAGE_SIZE, Range, layout};

/// Page 0 stays free: it holds the interrupt vectors, and a null pointer should not find
/// anything of ours.
const LOWEST: u64 = PAGE_SIZE;

/// Where something that may go anywhere goes, all below the 32-bit hole.
#[derive(Clone, Copy, Debug)]
pub(super) enum Room {
    /// In the boot block below 640 KiB, else above 1 MiB, else below the boot block.
    Block,
    /// Above the image, else anywhere.
    AboveImage,
    /// As high as possible, ending at or below this address.
    Top(u64),
}

/// Guest memory, and what of it is taken.
#[derive(Debug)]
pub(super) struct Placer<'m> {
    memory: &'m GuestMemory,
    map: &'m MemoryMap,
    /// Sorted, without overlap.
    placed: Vec<Placed>,
    /// Not taken, but not for what may go anywhere.
    avoided: Vec<Range>,
    /// End of the highest thing below the 32-bit hole that had a fixed place.
    image_end: u64,
    /// What the ACPI tables are to say, until they are placed.
    hardware: Option<Hardware>,
    /// Address of the RSDP.
    rsdp: Option<u64>,
}

impl<'m> Placer<'m> {
    pub(super) fn new(request: &Request<'m>) -> Self {
        let (memory, map) = (request.memory, request.map);
        Self {
            memory,
            map,
            placed: Vec::new(),
            avoided: Vec::new(),
            image_end: layout::HIGH_RAM_START,
            hardware: request.hardware,
            rsdp: None,
        }
    }

    pub(super) fn memory(&self) -> &'m GuestMemory {
        self.memory
    }

    pub(super) fn map(&self) -> &'m MemoryMap {
        self.map
    }

    /// All that was placed, in ascending order.
    pub(super) fn finish(self) -> Vec<Placed> {
        self.placed
    }

    /// Places the ACPI tables, the first time; gives the address of their RSDP. An image that
    /// lies where they belong is a machine's firmware itself, and gets none.
    pub(super) fn rsdp(&mut self) -> Result<Option<u64>, Error> {
        if let Some(hardware) = self.hardware.take() {
            let at = layout::ACPI_TABLES;
            let tables = acpi::tables(at, &hardware);
            match self.claim("ACPI tables", Range { start: at, end: at + tables.len() as u64 }) {
                Ok(()) => {
                    self.write("ACPI tables", at, &tables)?;
                    self.rsdp = Some(at);
                }
                Err(e) => log::info!("no ACPI tables: {e}"),
            }
        }
        Ok(self.rsdp)
    }

    /// Keeps what may go anywhere out of `range`.
    pub(super) fn avoid(&mut self, range: Range) {
        self.avoided.push(range);
    }

    /// Puts `bytes` at `start`, and `len - bytes.len()` zeroes after them.
    pub(super) fn put_at(
        &mut self,
        what: &str,
        start: u64,
        bytes: &[u8],
        len: u64,
    ) -> Result<Range, Error> {
        let range = Range::sized(start, len).ok_or_else(|| {
            Error::malformed(
                "image",
                format!("{what} at {start:#x} of {len:#x} bytes leaves the 64-bit address space"),
            )
        })?;
        self.claim(what, range)?;
        if range.end <= layout::HOLE_START {
            self.image_end = self.image_end.max(range.end);
        }
        self.write(what, start, bytes)?;
        Ok(range)
    }

    /// Marks what was placed at `range` as not to be written by the guest.
    pub(super) fn mark_read_only(&mut self, range: Range) {
        let at_range = |placed: &&mut Placed| placed.range == range;
        if let Some(placed) = self.placed.iter_mut().find(at_range) {
            placed.read_only = true;
        }
    }

    /// Finds room for `bytes`, and puts them there.
    pub(super) fn put(
        &mut self,
        what: &str,
        bytes: &[u8],
        align: u64,
        room: Room,
    ) -> Result<Range, Error> {
        let range = self.find(what, bytes.len() as u64, align, room)?;
        self.write(what, range.start, bytes)?;
        Ok(range)
    }

    /// Finds room for `len` bytes; they are zero. `align` is a power of two.
    pub(super) fn find(
        &mut self,
        what: &str,
        len: u64,
        align: u64,
        room: Room,
    ) -> Result<Range, Error> {
        let start = self.windows(room).into_iter().find_map(|window| match room {
            Room::Top(_) => self.last_fit(window, len, align),
            Room::Block | Room::AboveImage => self.first_fit(window, len, align),
        });
        let below = if let Room::Top(below) = room { below } else { layout::HOLE_START };
        let ram = self.map.ram;
        let no_room = || Error::NoRoom { what: what.to_owned(), len, below, ram };
        let start = start.ok_or_else(no_room)?;
        let range = Range { start, end: start + len };
        self.claim(what, range)?;
        Ok(range)
    }

    /// Writes into what was placed before.
    pub(super) fn write(&self, what: &str, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let refused = |source| Error::Memory { what: what.to_owned(), address, source };
        self.memory.write_slice(bytes, GuestAddress(address)).map_err(refused)
    }

    /// Takes `range`, and names what is in its way.
    pub(super) fn claim(&mut self, what: &str, range: Range) -> Result<(), Error> {
        let what = what.to_owned();
        if range.is_empty() {
            return Ok(());
        }
        let hole = Range { start: layout::HOLE_START, end: layout::HOLE_END };
        if range.overlaps(&hole) {
            return Err(Error::InHole { what, range });
        }
        if !self.map.has_ram(&range) {
            return Err(Error::BeyondRam { what, range, ram: self.map.ram });
        }
        let position = self.placed.partition_point(|p| p.range.end <= range.start);
        if let Some(other) = self.placed.get(position).filter(|p| p.range.overlaps(&range)) {
            let (other, other_range) = (other.what.clone(), other.range);
            return Err(Error::Overlap { what, range, other, other_range });
        }
        self.placed.insert(position, Placed { what, range, read_only: false });
        Ok(())
    }

    /// The parts of usable RAM to try, best first.
    fn windows(&self, room: Room) -> Vec<Range> {
        let wanted = match room {
            Room::Block => vec![
                (layout::BOOT_BLOCK, layout::LOW_RAM_END),
                (layout::HIGH_RAM_START, layout::HOLE_START),
                (LOWEST, layout::BOOT_BLOCK),
            ],
            Room::AboveImage => vec![
                (self.image_end, layout::HOLE_START),
                (layout::HIGH_RAM_START, layout::HOLE_START),
                (LOWEST, layout::LOW_RAM_END),
            ],
            Room::Top(below) => vec![
                (layout::HIGH_RAM_START, below.min(layout::HOLE_START)),
                (LOWEST, below.min(layout::LOW_RAM_END)),
            ],
        };
        let mut windows = Vec::new();
        for (start, end) in wanted {
            for usable in self.map.usable() {
                let part = Range { start: start.max(usable.start), end: end.min(usable.end) };
                if part.start < part.end {
                    windows.push(part);
                }
            }
        }
        windows
    }

    fn first_fit(&self, window: Range, len: u64, align: u64) -> Option<u64> {
        let mut start = window.start.checked_next_multiple_of(align)?;
        loop {
            let range = Range::sized(start, len)?;
            if range.end > window.end {
                return None;
            }
            match self.obstacle(range) {
                Some(other) => start = other.end.checked_next_multiple_of(align)?,
                None => return Some(start),
            }
        }
    }

    fn last_fit(&self, window: Range, len: u64, align: u64) -> Option<u64> {
        let mut end = window.end;
        loop {
            let start = end.checked_sub(len)? & !(align - 1);
            if start < window.start {
                return None;
            }
            match self.obstacle(Range { start, end: start + len }) {
                Some(other) => end = other.start,
                None => return Some(start),
            }
        }
    }

    /// Something that shares a byte with `range`.
    fn obstacle(&self, range: Range) -> Option<Range> {
        let position = self.placed.partition_point(|p| p.range.end <= range.start);
        let placed = self.placed.get(position).map(|p| p.range).filter(|r| r.overlaps(&range));
        placed.or_else(|| self.avoided.iter().copied().find(|r| r.overlaps(&range)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem;

    fn with_placer(ram: u64, test: impl FnOnce(&mut Placer<'_>)) {
        let memory = mem::create(ram).unwrap();
        let map = MemoryMap::new(ram);
        test(&mut Placer::new(&Request::new(&[], &map, &memory)));
    }

    #[test]
    fn blocks_go_around_the_image() {
        with_placer(4 << 20, |placer| {
            placer.put_at("segment", 0x8_1000, &[1; 0x1000], 0x1000).unwrap();
            let at = |range: Range| range.start;
            assert_eq!(at(placer.find("a", 0x1000, 4096, Room::Block).unwrap()), 0x8_0000);
            assert_eq!(at(placer.find("b", 8, 8, Room::Block).unwrap()), 0x8_2000);
            assert_eq!(at(placer.find("c", 0x4_0000, 4096, Room::Block).unwrap()), 0x10_0000);
        });
    }

    #[test]
    fn modules_follow_the_image_and_the_rest_goes_on_top() {
        with_placer(4 << 20, |placer| {
            placer.put_at("segment", 0x10_0000, &[], 0x801).unwrap();
            let module = placer.put("module", &[1, 2], 4096, Room::AboveImage).unwrap();
            assert_eq!(module, Range { start: 0x10_1000, end: 0x10_1002 });
            let top = placer.find("initrd", 0x1001, 4096, Room::Top(u64::MAX)).unwrap();
            assert_eq!(top.start, (4 << 20) - 0x2000);
            let under = placer.find("more", 0x2000, 4096, Room::Top(u64::MAX)).unwrap();
            assert_eq!(under.start, (4 << 20) - 0x4000);
            let low = placer.find("low", 0x1000, 4096, Room::Top(0x10_1000)).unwrap();
            assert_eq!(low.end, 0x9_F000);
        });
    }

    #[test]
    fn the_hole_is_never_used() {
        with_placer(5 << 30, |placer| {
            let top = placer.find("initrd", 0x1000, 4096, Room::Top(u64::MAX)).unwrap();
            assert_eq!(top.end, layout::HOLE_START);
            let into = placer.put_at("segment", layout::HOLE_START - 1, &[], 2);
            assert!(matches!(into, Err(Error::InHole { .. })));
            placer.put_at("segment", layout::HOLE_END, &[7], 4096).unwrap();
        });
    }

    #[test]
    fn what_does_not_fit_is_an_error_with_its_numbers() {
        with_placer(4 << 20, |placer| {
            let beyond = placer.put_at("segment", 4 << 20, &[], 1).unwrap_err();
            assert_eq!(
                beyond.to_string(),
                "segment at 0x400000..0x400001 lies beyond the guest's memory of 4 MiB: give it more with --memory"
            );
            placer.put_at("one", 0x20_0000, &[], 0x1000).unwrap();
            let overlap = placer.put_at("two", 0x20_0FFF, &[], 0x1000).unwrap_err();
            assert_eq!(
                overlap.to_string(),
                "two at 0x200fff..0x201fff overlaps one at 0x200000..0x201000"
            );
            assert!(matches!(placer.put_at("s", u64::MAX, &[], 2), Err(Error::Malformed { .. })));
            for room in [Room::Block, Room::AboveImage, Room::Top(u64::MAX)] {
                let none = placer.find("module", 4 << 20, 4096, room);
                assert!(matches!(none, Err(Error::NoRoom { .. })));
                let none = placer.find("module", u64::MAX, 4096, room);
                assert!(matches!(none, Err(Error::NoRoom { .. })));
            }
        });
    }

    #[test]
    fn nothing_goes_where_it_would_be_hidden() {
        with_placer(4 << 20, |placer| {
            placer.avoid(Range { start: 0x8_0000, end: 0x8_2800 });
            assert_eq!(placer.find("a", 8, 4096, Room::Block).unwrap().start, 0x8_3000);
        });
    }
}
