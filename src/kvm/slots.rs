//! Which memory slots a VM gets: guest memory's regions, split where a part of one is to be
//! read-only or not there at all. Plain arithmetic, no ioctl.

use crate::mem::{GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Range};

/// What a part of guest memory is, other than memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Reads and fetches work, a write exits as memory-mapped I/O.
    ReadOnly,
    /// Every access exits as memory-mapped I/O.
    Hole,
}

/// A part of guest memory that is guarded; both ends are multiples of the page size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// Guest-physical addresses.
    pub range: Range,
    /// How.
    pub guard: Guard,
}

/// A slot: guest-physical addresses, host address, and whether it is read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) host: u64,
    pub(super) read_only: bool,
}

/// The slots of all regions, in ascending order. `guarded` is sorted, without overlap.
pub(super) fn slots(memory: &GuestMemory, guarded: &[Guarded]) -> Vec<Slot> {
    let regions = memory.iter();
    regions.flat_map(|r| split(r.start_addr(), r.len(), r.as_ptr() as u64, guarded)).collect()
}

fn split(start: GuestAddress, len: u64, host: u64, guarded: &[Guarded]) -> Vec<Slot> {
    let (start, end) = (start.0, start.0 + len);
    let mut slots = Vec::with_capacity(1);
    let mut add = |from: u64, to: u64, read_only| {
        if from < to {
            slots.push(Slot {
                start: from,
                len: to - from,
                host: host + (from - start),
                read_only,
            });
        }
    };
    let mut at = start;
    for Guarded { range, guard } in guarded {
        let (from, to) = (range.start.clamp(at, end), range.end.clamp(at, end));
        if from == to {
            continue;
        }
        add(at, from, false);
        if *guard == Guard::ReadOnly {
            add(from, to, true);
        }
        at = to;
    }
    add(at, end, false);
    slots
}

/// A part of memory that was never touched is told apart from others in units of this, in bytes:
/// few enough slots, and small enough bitmaps.
const CHUNK: u64 = 256 << 20;

/// A slot cut where its memory begins or ceases to be touched, at multiples of [`CHUNK`].
pub(super) fn cut(slot: &Slot, is_touched: impl Fn(Range) -> bool) -> Vec<Slot> {
    let end = slot.start + slot.len;
    let mut pieces: Vec<(Slot, bool)> = Vec::new();
    let mut start = slot.start;
    while start < end {
        let next = (start / CHUNK + 1).saturating_mul(CHUNK).min(end);
        let touched = is_touched(Range { start, end: next });
        match pieces.last_mut() {
            Some((piece, same)) if *same == touched => piece.len += next - start,
            _ => {
                let host = slot.host + (start - slot.start);
                pieces.push((Slot { start, len: next - start, host, ..slot.clone() }, touched));
            }
        }
        start = next;
    }
    pieces.into_iter().map(|(piece, _)| piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: u64 = 0x7000_0000_0000;

    fn guard(start: u64, end: u64, guard: Guard) -> Guarded {
        Guarded { range: Range { start, end }, guard }
    }

    fn ranges(guarded: &[Guarded]) -> Vec<(u64, u64, bool)> {
        let slots = split(GuestAddress(0x10_0000), 0x10_0000, HOST, guarded);
        for slot in &slots {
            assert_eq!(slot.host - HOST, slot.start - 0x10_0000, "{slot:?}");
        }
        slots.iter().map(|slot| (slot.start, slot.start + slot.len, slot.read_only)).collect()
    }

    #[test]
    fn without_guards_a_region_is_one_slot() {
        assert_eq!(ranges(&[]), [(0x10_0000, 0x20_0000, false)]);
        let elsewhere =
            [guard(0, 0x1000, Guard::Hole), guard(0x20_0000, 0x30_0000, Guard::ReadOnly)];
        assert_eq!(ranges(&elsewhere), [(0x10_0000, 0x20_0000, false)]);
    }

    #[test]
    fn guards_split_it() {
        let guards = [
            guard(0x0F_F000, 0x10_1000, Guard::Hole),
            guard(0x10_4000, 0x10_6000, Guard::ReadOnly),
            guard(0x10_6000, 0x10_7000, Guard::Hole),
            guard(0x1F_F000, 0x21_0000, Guard::ReadOnly),
        ];
        let expected = [
            (0x10_1000, 0x10_4000, false),
            (0x10_4000, 0x10_6000, true),
            (0x10_7000, 0x1F_F000, false),
            (0x1F_F000, 0x20_0000, true),
        ];
        assert_eq!(ranges(&guards), expected);
    }

    #[test]
    fn a_slot_is_cut_where_it_begins_or_ceases_to_be_touched() {
        let (start, len) = (0x1000, 8 * CHUNK + 0x5000);
        let slot = Slot { start, len, host: HOST + start, read_only: false };
        let ranges = |touched: &dyn Fn(u64) -> bool| {
            let pieces = cut(&slot, |range| touched(range.start / CHUNK));
            assert!(pieces.iter().all(|piece| piece.host - HOST == piece.start));
            pieces.iter().map(|piece| (piece.start, piece.start + piece.len)).collect::<Vec<_>>()
        };
        let end = start + len;
        assert_eq!(ranges(&|_| true), [(start, end)]);
        assert_eq!(ranges(&|_| false), [(start, end)]);
        assert_eq!(ranges(&|chunk| chunk == 0), [(start, CHUNK), (CHUNK, end)]);
        let middle = [(start, 2 * CHUNK), (2 * CHUNK, 4 * CHUNK), (4 * CHUNK, end)];
        assert_eq!(ranges(&|chunk| chunk / 2 == 1), middle);
        assert_eq!(ranges(&|chunk| chunk == 8), [(start, 8 * CHUNK), (8 * CHUNK, end)]);
    }

    #[test]
    fn a_guard_may_take_all_and_reach_over_two_regions() {
        assert_eq!(ranges(&[guard(0, 0x40_0000, Guard::Hole)]), []);
        let memory = crate::mem::create((3 << 30) + (1 << 20)).unwrap();
        let all = [guard(0x1000, !0xFFF, Guard::ReadOnly)];
        let found: Vec<_> = slots(&memory, &all).iter().map(|s| (s.start, s.read_only)).collect();
        assert_eq!(found, [(0, false), (0x1000, true), (4 << 30, true)]);
    }
}
