//! Guest memory: a memfd, shared, one region below the 32-bit hole and one above.
//!
//! Called by `boot`, `kvm` and `machine`; knows nothing of what is put into it. The memfd
//! is there from the first day because snapshots, copies and vhost-user follow from it.

mod copy;
pub mod layout;
mod map;
mod touched;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

use vm_memory::mmap::MmapRegionBuilder;
pub use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};
use vm_memory::{FileOffset, GuestMemoryMmap, GuestRegionMmap};

pub use copy::Copy;
pub use map::{Kind, MemoryMap, Range};
pub use touched::is_touched;

/// The guest's physical memory.
pub type GuestMemory = GuestMemoryMmap<()>;

/// The smallest unit that can be mapped, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel gave no memory file of this size.
    #[error(
        "cannot make a memory file of {size} bytes for the guest (is there so much memory, and do limits allow it? see ulimit -v and -f, and --memory)"
    )]
    Memfd {
        /// Bytes.
        size: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel did not map it.
    #[error(
        "cannot map {size} bytes of guest memory (is there so much memory, and do limits allow it? see ulimit -v and -f, and --memory): {reason}"
    )]
    Map {
        /// Bytes.
        size: u64,
        /// The library's reason.
        reason: String,
    },
}

/// Makes `size` bytes of zeroed guest memory, laid out as [`MemoryMap::new`] says. Pages
/// cost nothing until they are touched.
pub fn create(size: u64) -> Result<GuestMemory, Error> {
    let file = memfd(c"guest-memory", size)?;
    let file = std::sync::Arc::new(file);
    let mut offset = 0;
    let mut regions = Vec::with_capacity(2);
    for range in map::regions(size) {
        let refused = |reason: String| Error::Map { size, reason };
        let len = usize::try_from(range.len()).map_err(|e| refused(e.to_string()))?;
        let mapping = MmapRegionBuilder::new(len)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(file.clone(), offset))
            .build()
            .map_err(|e| refused(e.to_string()))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(range.start))
            .ok_or_else(|| refused("the address space ends".to_owned()))?;
        regions.push(region);
        offset += range.len();
    }
    GuestMemory::from_regions(regions).map_err(|e| Error::Map { size, reason: e.to_string() })
}

/// Takes the page of `address` out of this process's page tables, and so out of KVM's: the next
/// access, the guest's or ours, maps it again. Where there is no memory nothing happens.
pub fn unmap_page(memory: &GuestMemory, address: GuestAddress) {
    let page = GuestAddress(address.0 & !(PAGE_SIZE - 1));
    let Ok(host) = memory.get_host_address(page) else { return };
    // SAFETY: the whole page is part of a mapping that `memory` keeps, because regions are
    // whole pages. The mapping is shared and the contents are the memfd's, so that nothing is
    // lost: an access maps the same page again.
    let result = unsafe { libc::madvise(host.cast(), PAGE_SIZE as usize, libc::MADV_DONTNEED) };
    if result != 0 {
        log::debug!("page {:#x} stays mapped: {}", page.0, io::Error::last_os_error());
    }
}

fn memfd(name: &CStr, size: u64) -> Result<File, Error> {
    let refused = |source| Error::Memfd { size, source };
    // SAFETY: `name` is a string that ends in a NUL; the result is checked below.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(refused(io::Error::last_os_error()));
    }
    // SAFETY: `fd` is open, and nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size).map_err(refused)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_continues_above_the_hole() {
        let memory = create((3 << 30) + (64 << 20)).unwrap();
        let above = GuestAddress(layout::HOLE_END + (64 << 20) - 8);
        memory.write_obj(0x1122_3344_5566_7788_u64, above).unwrap();
        assert_eq!(memory.read_obj::<u64>(above).unwrap(), 0x1122_3344_5566_7788);
        assert!(memory.write_obj(0_u8, GuestAddress(layout::HOLE_START)).is_err());
        assert!(memory.write_obj(0_u8, GuestAddress(above.0 + 8)).is_err());
        assert_eq!(memory.read_obj::<u64>(GuestAddress((64 << 20) - 8)).unwrap(), 0);
    }

    #[test]
    fn absurd_sizes_are_errors() {
        assert!(create(1 << 62).is_err());
    }
}
