//! Which parts of guest memory were ever touched: the memory file has holes for the others. Used
//! by whoever copies memory, and by `kvm` to leave out what cannot have been written to.

use std::io;
use std::os::fd::AsRawFd;

use vm_memory::GuestRegionMmap;

use super::{GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Range};

/// Was anything of this range, all of which is memory, ever touched? True where the system does
/// not say.
pub fn is_touched(memory: &GuestMemory, range: &Range) -> bool {
    memory.iter().any(|region| {
        let start = region.start_addr().0;
        let (from, to) = (range.start.max(start), range.end.min(start + region.len()));
        from < to && first(region, from - start, to - start).map_or(true, |data| data.is_some())
    })
}

/// The touched parts of a region between two offsets from its start.
pub(super) fn touched(
    region: &GuestRegionMmap,
    start: u64,
    end: u64,
) -> io::Result<Vec<(u64, u64)>> {
    let Some(file) = region.file_offset() else { return Ok(vec![(start, end)]) };
    let mut parts = Vec::new();
    let mut at = start;
    while let Some(data) = first(region, at, end)? {
        // Behind the last data there is a hole at the file's end.
        let hole = seek(file.file(), file.start() + data, libc::SEEK_HOLE)?;
        at = hole.map_or(end, |hole| hole - file.start()).min(end);
        parts.push((data, at));
    }
    Ok(parts)
}

/// Where the first touched part between two offsets begins.
fn first(region: &GuestRegionMmap, start: u64, end: u64) -> io::Result<Option<u64>> {
    let Some(file) = region.file_offset() else { return Ok((start < end).then_some(start)) };
    if start >= end {
        return Ok(None);
    }
    let data = seek(file.file(), file.start() + start, libc::SEEK_DATA)?;
    Ok(data.map(|data| data - file.start()).filter(|data| *data < end))
}

/// lseek(2); `None` where there is no more of what is looked for.
fn seek(file: &std::fs::File, at: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let at = libc::off_t::try_from(at).map_err(io::Error::other)?;
    // SAFETY: has no preconditions but an open file, which is borrowed.
    match unsafe { libc::lseek(file.as_raw_fd(), at, whence) } {
        -1 => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            e => Err(e),
        },
        found => Ok(Some(found as u64)), // not negative
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Bytes, GuestAddress, create, layout};
    use super::*;

    #[test]
    fn a_write_touches_its_page_and_no_other() {
        let memory = create((3 << 30) + (64 << 20)).unwrap();
        let is = |start, end| is_touched(&memory, &Range { start, end });
        assert!(!is(0, layout::HOLE_START) && !is(layout::HOLE_END, layout::HOLE_END + (64 << 20)));
        memory.write_obj(1_u8, GuestAddress(0x20_0000)).unwrap();
        memory.write_obj(1_u8, GuestAddress(layout::HOLE_END + 0x60_5000)).unwrap();
        assert!(is(0x20_0000, 0x20_1000) && is(0, layout::HOLE_START));
        assert!(!is(0, 0x20_0000) && !is(0x40_0000, layout::HOLE_START));
        assert!(is(layout::HOLE_END, layout::HOLE_END + (64 << 20)));
        // Where the system backs files with huge pages, 2 MiB are touched at once.
        assert!(!is(layout::HOLE_END, layout::HOLE_END + 0x60_0000));
    }
}
