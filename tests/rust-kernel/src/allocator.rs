//! Physical pages: a bitmap of those that are free.

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// Gives out the pages of an area, lowest first.
pub struct Pages {
    base: usize,
    count: usize,
    /// A bit a page: 1 is taken.
    taken: u64,
}

impl Pages {
    /// `count` pages, 64 at most, from `base` on.
    pub const fn new(base: usize, count: usize) -> Self {
        Self { base, count: if count > 64 { 64 } else { count }, taken: 0 }
    }

    /// A free page's address.
    pub fn allocate(&mut self) -> Option<usize> {
        let free = (0..self.count).find(|page| self.taken & (1 << page) == 0)?;
        self.taken |= 1 << free;
        Some(self.base + free * PAGE)
    }

    /// Gives a page back; false where it was not given out.
    pub fn free(&mut self, address: usize) -> bool {
        let page = address.wrapping_sub(self.base) / PAGE;
        if !address.is_multiple_of(PAGE) || page >= self.count || self.taken & (1 << page) == 0 {
            return false;
        }
        self.taken &= !(1 << page);
        true
    }

    /// How many pages are free.
    pub fn left(&self) -> usize {
        (0..self.count).filter(|page| self.taken & (1 << page) == 0).count()
    }
}
