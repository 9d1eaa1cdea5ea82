//! The bus: which device answers at an address. Knows no device and no KVM.
//!
//! Writers publish a new frozen table; each vCPU has a [`BusView`] of its own, whose lookup
//! is one atomic load and a binary search. The exit path takes no lock that another vCPU
//! takes for another device.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::state::Malformed;

/// One address range's device. Offsets start at 0; the bus guarantees that the whole access
/// lies inside the range. A guest's bad access is a guest matter: there is no result.
pub trait Device: Send + Sync {
    /// Fills `data` (1, 2, 4 or 8 bytes).
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data` (1, 2, 4 or 8 bytes).
    fn write(&self, offset: u64, data: &[u8]);
    /// Its registers, encoded by [`crate::state`]; nothing for a device that keeps nothing.
    fn save(&self) -> Vec<u8>;
    /// Takes its registers from what [`Self::save`] gave. Rings no interrupt and prints nothing.
    ///
    /// # Errors
    /// That is no state of such a device.
    fn restore(&self, state: &[u8]) -> Result<(), Malformed>;
}

/// A device whose every access changes it: `Mutex<D>` is a [`Device`].
pub trait MutDevice: Send {
    /// Fills `data`.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data`.
    fn write(&mut self, offset: u64, data: &[u8]);
    /// As [`Device::save`].
    fn save(&self) -> Vec<u8>;
    /// As [`Device::restore`].
    ///
    /// # Errors
    /// As there.
    fn restore(&mut self, state: &[u8]) -> Result<(), Malformed>;
}

impl<D: MutDevice> Device for Mutex<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }
    fn save(&self) -> Vec<u8> {
        self.lock().unwrap_or_else(PoisonError::into_inner).save()
    }
    fn restore(&self, state: &[u8]) -> Result<(), Malformed> {
        self.lock().unwrap_or_else(PoisonError::into_inner).restore(state)
    }
}

/// Two devices want the same address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} at {base:#x}..{end:#x} overlaps {other}")]
pub struct Overlap {
    /// The one that came later.
    pub name: &'static str,
    /// Its first address.
    pub base: u64,
    /// The address after its last.
    pub end: u64,
    /// The one that was there.
    pub other: &'static str,
}

#[derive(Clone)]
struct Entry {
    base: u64,
    len: u64,
    name: &'static str,
    device: Arc<dyn Device>,
}

/// An address space of devices: port I/O, or memory-mapped I/O.
#[derive(Default)]
pub struct Bus {
    /// Counts tables. Stored with Release after `table` is replaced, so that a view that sees
    /// the number (Acquire) finds at least that table behind the lock.
    generation: AtomicU64,
    /// The newest table, sorted by base. Taken by writers, and by a view once a generation.
    table: Mutex<Arc<[Entry]>>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Puts `device` at `base..base + len`.
    pub fn insert(
        &self,
        name: &'static str,
        base: u64,
        len: u64,
        device: Arc<dyn Device>,
    ) -> Result<(), Overlap> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let end = base.saturating_add(len);
        if let Some(other) = table.iter().find(|e| base < e.base + e.len && e.base < end) {
            return Err(Overlap { name, base, end, other: other.name });
        }
        let mut entries = table.to_vec();
        let position = entries.partition_point(|e| e.base < base);
        entries.insert(position, Entry { base, len, name, device });
        *table = entries.into();
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Every range: first address, length, name.
    pub fn ranges(&self) -> Vec<(u64, u64, &'static str)> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.iter().map(|e| (e.base, e.len, e.name)).collect()
    }

    /// A view for one vCPU.
    pub fn view(self: &Arc<Self>) -> BusView {
        BusView { generation: u64::MAX, table: Arc::new([]), bus: self.clone() }
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges()).finish()
    }
}

/// One vCPU's view of a [`Bus`].
pub struct BusView {
    generation: u64,
    table: Arc<[Entry]>,
    bus: Arc<Bus>,
}

impl BusView {
    /// Reads; false where no device claims all of the access, and `data` is left alone.
    #[inline]
    pub fn read(&mut self, address: u64, data: &mut [u8]) -> bool {
        let Some((device, offset)) = self.find(address, data.len()) else { return false };
        device.read(offset, data);
        true
    }

    /// Writes; false where no device claims all of the access.
    #[inline]
    pub fn write(&mut self, address: u64, data: &[u8]) -> bool {
        let Some((device, offset)) = self.find(address, data.len()) else { return false };
        device.write(offset, data);
        true
    }

    #[inline]
    fn find(&mut self, address: u64, len: usize) -> Option<(&dyn Device, u64)> {
        if self.generation != self.bus.generation.load(Ordering::Acquire) {
            self.refresh();
        }
        let after = self.table.partition_point(|e| e.base <= address);
        let entry = self.table.get(after.checked_sub(1)?)?;
        let offset = address - entry.base;
        // An access that leaves its device's range is nobody's.
        (offset.checked_add(len as u64)? <= entry.len).then_some((&*entry.device, offset))
    }

    #[cold]
    fn refresh(&mut self) {
        let table = self.bus.table.lock().unwrap_or_else(PoisonError::into_inner);
        self.generation = self.bus.generation.load(Ordering::Relaxed);
        self.table = table.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with its own name and the offset; keeps what was written.
    struct Echo(u8, Vec<u8>);

    impl MutDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.1.extend_from_slice(data);
        }
        fn save(&self) -> Vec<u8> {
            Vec::new()
        }
        fn restore(&mut self, _: &[u8]) -> Result<(), Malformed> {
            Ok(())
        }
    }

    fn bus() -> Arc<Bus> {
        let bus = Bus::new();
        for (base, len, first) in [(0x60, 5, 0x10), (0x3F8, 8, 0x20), (0x70, 2, 0x30)] {
            bus.insert("echo", base, len, Arc::new(Mutex::new(Echo(first, vec![])))).unwrap();
        }
        bus
    }

    #[test]
    fn an_access_finds_its_device() {
        let mut view = bus().view();
        let mut data = [0];
        for (address, value) in [(0x60, 0x10), (0x64, 0x14), (0x70, 0x30), (0x3FF, 0x27)] {
            assert!(view.read(address, &mut data));
            assert_eq!(data[0], value);
        }
    }

    #[test]
    fn what_nobody_claims_stays_unclaimed() {
        let mut view = bus().view();
        for address in [0, 0x5F, 0x65, 0x72, 0x400, u64::MAX] {
            assert!(!view.read(address, &mut [0]));
            assert!(!view.write(address, &[0]));
        }
    }

    #[test]
    fn an_access_that_leaves_the_range_is_unclaimed() {
        let mut view = bus().view();
        assert!(view.read(0x3FC, &mut [0; 4]));
        assert!(!view.read(0x3FD, &mut [0; 4]));
        assert!(!view.read(0x71, &mut [0; 2]));
    }

    #[test]
    fn overlaps_are_refused() {
        let echo = || Arc::new(Mutex::new(Echo(0, vec![])));
        let bus = bus();
        assert!(bus.insert("late", 0x3F0, 9, echo()).is_err());
        assert!(bus.insert("late", 0x3FF, 1, echo()).is_err());
        assert!(bus.insert("late", 0x3F0, 8, echo()).is_ok());
    }

    #[test]
    fn a_view_sees_what_was_added_later() {
        let bus = bus();
        let mut view = bus.view();
        assert!(!view.write(0x80, &[1]));
        bus.insert("late", 0x80, 1, Arc::new(Mutex::new(Echo(0, vec![])))).unwrap();
        assert!(view.write(0x80, &[1]));
    }
}
