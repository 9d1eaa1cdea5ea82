//! KVM's own counters of a VM or a vCPU: the binary statistics behind KVM_GET_STATS_FD
//! (Linux, Documentation/virt/kvm/api.rst, 4.133).
//!
//! The file is a header, descriptors of one size each, and data; all three are found by the
//! offsets in the header, in the byte order of the machine.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::{
    KVM_STATS_BASE_MASK, KVM_STATS_BASE_POW2, KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_INSTANT,
    KVM_STATS_TYPE_LINEAR_HIST, KVM_STATS_TYPE_LOG_HIST, KVM_STATS_TYPE_MASK, KVM_STATS_TYPE_PEAK,
    KVM_STATS_UNIT_BOOLEAN, KVM_STATS_UNIT_BYTES, KVM_STATS_UNIT_CYCLES, KVM_STATS_UNIT_MASK,
    KVM_STATS_UNIT_NONE, KVM_STATS_UNIT_SECONDS,
};
use serde::{Deserialize, Serialize};

/// KVM_GET_STATS_FD: `_IO(KVMIO, 0xCE)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xAE << 8 | 0xCE;
/// More than any kernel has: what is longer is not this format.
const MOST_BYTES: u64 = 1 << 20;
/// `struct kvm_stats_desc` without its name.
const DESCRIPTOR: usize = 16;

/// What a counter's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatKind {
    /// Grows.
    Cumulative,
    /// Goes up and down.
    Instant,
    /// The highest that there was.
    Peak,
    /// A number a bucket of equal width.
    LinearHistogram,
    /// A number a bucket, each twice as wide as the one before.
    LogHistogram,
    /// Something that is not known here.
    Other,
}

/// What a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // named after the units
pub enum StatUnit {
    None,
    Bytes,
    Seconds,
    Cycles,
    Boolean,
    Other,
}

/// One of the kernel's counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// The kernel's name for it.
    pub name: String,
    /// What its values are.
    pub kind: StatKind,
    /// What it counts.
    pub unit: StatUnit,
    /// Values are in units of 10 (or 2) to this.
    pub exponent: i16,
    /// Is the base of the exponent 2?
    pub binary: bool,
    /// One value; a histogram has one a bucket.
    pub values: Vec<u64>,
}

/// Reads the counters; none where this KVM has no such file, or one that is not understood.
pub(super) fn read_stats(of: &impl AsRawFd) -> Vec<Stat> {
    let stats = open(of).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    match stats {
        Ok(bytes) => parse(&bytes).unwrap_or_else(|| {
            log::debug!("KVM's statistics are not in the format that api.rst describes");
            Vec::new()
        }),
        Err(e) => {
            log::debug!("this KVM has no KVM_GET_STATS_FD: {e}");
            Vec::new()
        }
    }
}

/// One counter with one value, which can be read again and again.
#[derive(Debug)]
pub(super) struct Counter {
    file: File,
    /// The value's place in the file.
    at: u64,
}

impl Counter {
    /// The counter of this name; `None` where this KVM has none.
    pub(super) fn find(of: &impl AsRawFd, name: &str) -> Option<Self> {
        let file = open(of).ok()?;
        let mut bytes = Vec::new();
        (&file).take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
        let at = place(&bytes, name)?;
        Some(Self { file, at })
    }

    /// Its value now.
    pub(super) fn value(&self) -> Option<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, self.at).ok()?;
        Some(u64::from_ne_bytes(bytes))
    }
}

fn open(of: &impl AsRawFd) -> io::Result<File> {
    // SAFETY: the ioctl takes no argument, and gives a new file descriptor or -1.
    let fd = unsafe { libc::ioctl(of.as_raw_fd(), KVM_GET_STATS_FD) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is open, and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// `None` where offsets or sizes do not agree.
fn parse(bytes: &[u8]) -> Option<Vec<Stat>> {
    let data = bytes.get(word(bytes, 20)?..)?;
    descriptors(bytes)?.map(|descriptor| stat(descriptor, data)).collect()
}

/// Where the first value of the counter of this name is.
fn place(bytes: &[u8], name: &str) -> Option<u64> {
    let is_it = |descriptor: &&[u8]| {
        let found = descriptor[DESCRIPTOR..].split(|byte| *byte == 0).next();
        found == Some(name.as_bytes())
    };
    let offset = word(descriptors(bytes)?.find(is_it)?, 8)?;
    Some((word(bytes, 20)? + offset) as u64)
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?) as usize)
}

fn descriptors(bytes: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let (name_size, count) = (word(bytes, 4)?, word(bytes, 8)?);
    let size = DESCRIPTOR.checked_add(name_size)?;
    let descriptors = bytes.get(word(bytes, 16)?..)?.get(..size.checked_mul(count)?)?;
    Some(descriptors.chunks_exact(size))
}

/// A descriptor: flags, exponent, number of values, their offset in the data, the width of a
/// linear histogram's bucket, the name with a NUL.
fn stat(descriptor: &[u8], data: &[u8]) -> Option<Stat> {
    let flags = u32::from_ne_bytes(*descriptor.first_chunk()?);
    let half = |at: usize| Some(*descriptor.get(at..)?.first_chunk::<2>()?);
    let count = u16::from_ne_bytes(half(6)?);
    let offset = u32::from_ne_bytes(*descriptor.get(8..)?.first_chunk()?) as usize;
    let values = data.get(offset..)?.get(..usize::from(count) * size_of::<u64>())?;
    let (values, _) = values.as_chunks();
    let name = descriptor.get(DESCRIPTOR..)?.split(|byte| *byte == 0).next()?;
    Some(Stat {
        name: String::from_utf8_lossy(name).into_owned(),
        kind: kind(flags),
        unit: unit(flags),
        exponent: i16::from_ne_bytes(half(4)?),
        binary: flags & KVM_STATS_BASE_MASK == KVM_STATS_BASE_POW2,
        values: values.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect(),
    })
}

fn kind(flags: u32) -> StatKind {
    match flags & KVM_STATS_TYPE_MASK {
        KVM_STATS_TYPE_CUMULATIVE => StatKind::Cumulative,
        KVM_STATS_TYPE_INSTANT => StatKind::Instant,
        KVM_STATS_TYPE_PEAK => StatKind::Peak,
        KVM_STATS_TYPE_LINEAR_HIST => StatKind::LinearHistogram,
        KVM_STATS_TYPE_LOG_HIST => StatKind::LogHistogram,
        _ => StatKind::Other,
    }
}

fn unit(flags: u32) -> StatUnit {
    match flags & KVM_STATS_UNIT_MASK {
        KVM_STATS_UNIT_NONE => StatUnit::None,
        KVM_STATS_UNIT_BYTES => StatUnit::Bytes,
        KVM_STATS_UNIT_SECONDS => StatUnit::Seconds,
        KVM_STATS_UNIT_CYCLES => StatUnit::Cycles,
        KVM_STATS_UNIT_BOOLEAN => StatUnit::Boolean,
        _ => StatUnit::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: usize = 16;

    /// A file with an ID of 8 bytes, two counters and a gap before the data.
    fn file() -> Vec<u8> {
        let (id, descriptors) = (24_u32, 32_u32);
        let data = descriptors + 2 * (DESCRIPTOR + NAME) as u32 + 8;
        let mut bytes: Vec<u8> = [0, NAME as u32, 2, id, descriptors, data]
            .iter()
            .flat_map(|n| n.to_ne_bytes())
            .collect();
        bytes.extend(b"kvm-1\0\0\0");
        let mut describe = |flags: u32, exponent: i16, count: u16, offset: u32, name: &[u8]| {
            bytes.extend(flags.to_ne_bytes());
            bytes.extend(exponent.to_ne_bytes());
            bytes.extend(count.to_ne_bytes());
            bytes.extend([offset, 0].iter().flat_map(|n| n.to_ne_bytes()));
            bytes.extend(name);
            bytes.resize(bytes.len() + NAME - name.len(), 0);
        };
        describe(0, 0, 1, 16, b"exits");
        describe(0x24, -9, 2, 0, b"halt_wait_hist");
        bytes.resize(data as usize, 0xEE);
        bytes.extend([3_u64, 4, 99].iter().flat_map(|n| n.to_ne_bytes()));
        bytes
    }

    #[test]
    fn counters_and_histograms() {
        assert_eq!(place(&file(), "exits"), Some(file().len() as u64 - 8));
        assert_eq!(place(&file(), "exit"), None);
        let stats = parse(&file()).unwrap();
        assert_eq!(stats.len(), 2);
        assert_eq!((stats[0].name.as_str(), &stats[0].values[..]), ("exits", &[99][..]));
        assert_eq!((stats[0].kind, stats[0].unit), (StatKind::Cumulative, StatUnit::None));
        assert_eq!((stats[1].name.as_str(), &stats[1].values[..]), ("halt_wait_hist", &[3, 4][..]));
        assert_eq!((stats[1].kind, stats[1].unit), (StatKind::LogHistogram, StatUnit::Seconds));
        assert_eq!((stats[1].exponent, stats[1].binary), (-9, false));
    }

    #[test]
    fn what_is_cut_off_or_lies_is_nothing() {
        let good = file();
        for len in 0..good.len() {
            assert_eq!(parse(&good[..len]), None, "{len}");
        }
        for at in [4, 8, 16, 20] {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
            assert_eq!(parse(&bad), None, "{at}");
        }
    }
}
