//! All that a vCPU's page tables map, as ranges.

use super::walk::{AddressSpace, End, Paging};

/// Linear addresses that are mapped to as many physical ones in a row, all of them memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first linear address.
    pub linear: u64,
    /// The first physical address.
    pub physical: u64,
    /// Bytes.
    pub len: u64,
}

/// Page walks that are made, and ranges that are kept: tables can map more than anybody
/// wants to know.
const MOST_WALKS: u32 = 1 << 20;
const MOST_RANGES: usize = 1 << 13;

/// The mappings in ascending order, as far as there is memory behind them.
pub fn mappings(space: &AddressSpace<'_>) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    let mut linear = 0_u64;
    for _ in 0..MOST_WALKS {
        let walk = space.walk(linear);
        let left = match walk.end {
            End::Page { physical, size, memory, .. } => {
                let len = size - (linear & (size - 1));
                if memory && !add(&mut found, Mapping { linear, physical, len }) {
                    break;
                }
                len
            }
            // The canonical hole: on to its other end.
            End::NotCanonical => first_above_hole(space.paging()).wrapping_sub(linear),
            _ => {
                let covered = walk.levels.last().map_or(1 << 12, |it| space.covered(it.table));
                covered - (linear & (covered - 1))
            }
        };
        let next = linear.wrapping_add(left);
        let short = !matches!(space.paging(), Paging::FourLevel | Paging::FiveLevel);
        if next <= linear || short && next > u64::from(u32::MAX) {
            break;
        }
        linear = next;
    }
    found
}

fn first_above_hole(paging: Paging) -> u64 {
    if paging == Paging::FiveLevel { !0 << 56 } else { !0 << 47 }
}

/// False when there is no room.
fn add(found: &mut Vec<Mapping>, new: Mapping) -> bool {
    if let Some(last) = found.last_mut()
        && last.linear + last.len == new.linear
        && last.physical + last.len == new.physical
    {
        last.len += new.len;
        return true;
    }
    if found.len() == MOST_RANGES {
        return false;
    }
    found.push(new);
    true
}
