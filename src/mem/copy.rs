//! A copy of guest memory, as large as what is not zero; kept by `machine` to put pages back.

use std::io;

use super::touched::touched;
use super::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, PAGE_SIZE};

const PAGE: usize = PAGE_SIZE as usize;
const ZEROS: [u8; PAGE] = [0; PAGE];

/// A copy of all pages.
#[derive(Debug)]
pub struct Copy {
    regions: Vec<Region>,
    /// The pages that are not zero, one behind the other.
    pages: Vec<u8>,
}

#[derive(Debug)]
struct Region {
    start: u64,
    /// For each page its place in `pages`, counted from 1; 0 for a page of zeros. Untouched
    /// parts of it stay unmapped, as what they are about.
    places: Vec<u32>,
}

impl Copy {
    /// Copies memory that nobody writes to meanwhile.
    ///
    /// # Errors
    /// The memory file's, or more pages than there are places for (16 TiB).
    pub fn take(memory: &GuestMemory) -> io::Result<Self> {
        let mut copy = Self { regions: Vec::with_capacity(2), pages: Vec::new() };
        for region in memory.iter() {
            let start = region.start_addr().0;
            let mut places = vec![0; (region.len() / PAGE_SIZE) as usize];
            let mut page = ZEROS;
            for (from, to) in touched(region, 0, region.len())? {
                for number in from / PAGE_SIZE..to.div_ceil(PAGE_SIZE) {
                    let at = GuestAddress(start + number * PAGE_SIZE);
                    memory.read_slice(&mut page, at).map_err(io::Error::other)?;
                    if page != ZEROS {
                        copy.pages.extend_from_slice(&page);
                        let place = u32::try_from(copy.pages.len() / PAGE);
                        places[number as usize] = place.map_err(io::Error::other)?;
                    }
                }
            }
            copy.regions.push(Region { start, places });
        }
        copy.pages.shrink_to_fit();
        Ok(copy)
    }

    /// The page at an address, as it was; `None` where there was no memory.
    pub fn page(&self, at: GuestAddress) -> Option<&[u8]> {
        let region = self.regions.iter().rev().find(|region| region.start <= at.0)?;
        let number = (at.0 - region.start) / PAGE_SIZE;
        match *region.places.get(usize::try_from(number).ok()?)? {
            0 => Some(&ZEROS),
            place => self.pages.chunks_exact(PAGE).nth(place as usize - 1),
        }
    }

    /// The pages that are not the same in two copies of the same memory.
    pub fn differences(&self, other: &Self) -> Vec<GuestAddress> {
        let all = self.regions.iter().flat_map(|region| {
            let pages = 0..region.places.len() as u64;
            pages.map(|number| GuestAddress(region.start + number * PAGE_SIZE))
        });
        all.filter(|at| self.page(*at) != other.page(*at)).collect()
    }

    /// Bytes of pages that it holds.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Is every page zero?
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{create, layout};
    use super::*;

    #[test]
    fn it_holds_what_is_not_zero_and_gives_every_page() {
        let memory = create((3 << 30) + (64 << 20)).unwrap();
        let places =
            [0, 0x5123, (3 << 30) - 1, layout::HOLE_END, layout::HOLE_END + (64 << 20) - 1];
        for (value, place) in (1_u8..).zip(places) {
            memory.write_obj(value, GuestAddress(place)).unwrap();
        }
        memory.write_obj(0_u8, GuestAddress(0x10_0000)).unwrap(); // touched, and zero
        let copy = Copy::take(&memory).unwrap();
        assert_eq!(copy.len(), places.len() * PAGE);
        for (value, place) in (1_u8..).zip(places) {
            memory.write_obj(0xEE_u8, GuestAddress(place)).unwrap();
            let page = copy.page(GuestAddress(place & !(PAGE_SIZE - 1))).unwrap();
            assert_eq!(page[place as usize % PAGE], value, "{place:#x}");
            assert_eq!(page.iter().filter(|byte| **byte != 0).count(), 1);
        }
        let changed: Vec<_> = places.iter().map(|at| GuestAddress(at & !(PAGE_SIZE - 1))).collect();
        assert_eq!(copy.differences(&Copy::take(&memory).unwrap()), changed);
        assert_eq!(copy.page(GuestAddress(0x10_0000)), Some(&ZEROS[..]));
        assert_eq!(copy.page(GuestAddress(layout::HOLE_START)), None);
        assert_eq!(copy.page(GuestAddress(layout::HOLE_END + (64 << 20))), None);
    }

    #[test]
    fn memory_that_nobody_touched_costs_nothing() {
        let copy = Copy::take(&create(1 << 30).unwrap()).unwrap();
        assert!(copy.is_empty());
        assert_eq!(copy.page(GuestAddress(PAGE_SIZE)), Some(&ZEROS[..]));
    }
}
