//! Strict mode: which accesses that nothing claims end the guest, and in which words.

use std::fmt;
use std::ops::Range;

use super::counts::UnclaimedKind;
use super::recorder::Record;

/// The rules of a machine. Memory that is to be guarded has no slot, or a read-only one, so
/// that an access comes back as memory-mapped I/O.
#[derive(Clone, Debug, Default)]
pub struct Strict {
    /// Port I/O that nothing claims.
    pub io: bool,
    /// Memory-mapped I/O that nothing claims.
    pub mmio: bool,
    /// MSRs that KVM does not know.
    pub msr: bool,
    /// Guest-physical pages that may not be written: the image's read-only segments.
    pub text: Vec<Range<u64>>,
    /// Page zero.
    pub null: bool,
}

/// End of the page that nobody should use.
const NULL_END: u64 = 4096;

impl Strict {
    /// The rule that an unclaimed access breaks, by its name on the command line, and what
    /// is at its address.
    #[cold]
    fn broken(&self, kind: UnclaimedKind, address: u64) -> Option<(&'static str, &'static str)> {
        use UnclaimedKind::{MmioRead, MmioWrite, MsrRead, MsrWrite, PioRead, PioWrite};
        match kind {
            PioRead | PioWrite if self.io => Some(("io", "where no device is")),
            MmioRead | MmioWrite if self.null && address < NULL_END => {
                Some(("null", "in page zero"))
            }
            MmioWrite if self.text.iter().any(|range| range.contains(&address)) => {
                Some(("text", "in a read-only segment of the image"))
            }
            MmioRead | MmioWrite if self.mmio => {
                Some(("mmio", "where neither memory nor a device is"))
            }
            MsrRead | MsrWrite if self.msr => {
                Some(("msr", "which this processor does not have, or not with this value"))
            }
            _ => None,
        }
    }

    /// The broken rule, if the access breaks one.
    pub fn check(&self, kind: UnclaimedKind, record: &Record) -> Option<Violation> {
        let (rule, place) = self.broken(kind, record.address)?;
        Some(Violation { rule, place, kind, record: *record, finished: false })
    }

    /// Would an instruction fetched from linear address `rip` have come from page zero?
    pub(super) fn forbids_fetch(&self, rip: u64) -> bool {
        self.null && rip < NULL_END
    }
}

/// A broken rule of strict mode. As text: which access, where, by which instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule's name on the command line.
    pub rule: &'static str,
    /// What is at the address.
    pub place: &'static str,
    /// The access.
    pub kind: UnclaimedKind,
    /// The exit: size, value, RIP.
    pub record: Record,
    /// Had KVM finished the instruction before it asked? Then RIP is the next one's.
    pub finished: bool,
}

impl Violation {
    /// The access in words, without the instruction's address.
    pub fn access(&self) -> String {
        use UnclaimedKind::{Hypercall, MmioRead, MmioWrite, MsrRead, MsrWrite, PioRead, PioWrite};
        let Record { address, value, size, count, .. } = self.record;
        let width = 2 + 2 * usize::from(size);
        let bytes = match (size, count) {
            (1, 1) => "1 byte".to_owned(),
            (_, 1) => format!("{size} bytes"),
            _ => format!("{count} times {size} bytes"),
        };
        let place = self.place;
        match self.kind {
            PioRead => format!("a read of {bytes} from port {address:#x}, {place}"),
            PioWrite => {
                format!("a write of {value:#0width$x} ({bytes}) to port {address:#x}, {place}")
            }
            MmioRead => format!("a read of {bytes} at {address:#x}, {place}"),
            MmioWrite => format!("a write of {value:#0width$x} ({bytes}) to {address:#x}, {place}"),
            MsrRead => format!("a read of MSR {address:#x}, {place}"),
            MsrWrite => format!("a write of {value:#x} to MSR {address:#x}, {place}"),
            Hypercall => format!("hypercall {address:#x}, {place}"),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.finished { "by the instruction before" } else { "at" };
        write!(f, "{place} {:#x}: {} (--strict={})", self.record.rip, self.access(), self.rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::Exit;

    fn rule(strict: &Strict, kind: UnclaimedKind, address: u64) -> Option<&'static str> {
        strict.broken(kind, address).map(|(rule, _)| rule)
    }

    #[test]
    fn each_rule_by_itself() {
        use UnclaimedKind::*;
        let io = Strict { io: true, ..Strict::default() };
        assert_eq!(rule(&io, PioRead, 0x80), Some("io"));
        assert_eq!(rule(&io, MmioWrite, 0x80), None);
        let text = Strict { text: vec![0x1000..0x2000, 0x10_0000..0x10_1000], ..Strict::default() };
        assert_eq!(rule(&text, MmioWrite, 0x10_0FFF), Some("text"));
        assert_eq!(rule(&text, MmioWrite, 0x10_1000), None);
        assert_eq!(rule(&text, MmioRead, 0x10_0000), None);
        let null = Strict { null: true, ..Strict::default() };
        assert_eq!(rule(&null, MmioRead, 8), Some("null"));
        assert_eq!(rule(&null, MmioRead, 4096), None);
        let all = Strict { io: true, mmio: true, msr: true, ..null };
        assert_eq!(rule(&all, MmioWrite, 8), Some("null"));
        assert_eq!(rule(&all, MmioWrite, 4096), Some("mmio"));
        assert_eq!(rule(&all, MsrWrite, 0x1234), Some("msr"));
        assert_eq!(rule(&all, Hypercall, 7), None);
    }

    #[test]
    fn a_violation_names_instruction_address_size_and_value() {
        let strict = Strict { mmio: true, ..Strict::default() };
        let exit = Exit::MmioWrite { address: 0xD000_0000, data: &[0x34, 0x12, 0, 0] };
        let record = Record::new(0x10_0203, 0, &exit);
        let violation = strict.check(UnclaimedKind::MmioWrite, &record).unwrap();
        assert_eq!(
            violation.to_string(),
            "at 0x100203: a write of 0x00001234 (4 bytes) to 0xd0000000, where neither memory nor a device is (--strict=mmio)"
        );
    }
}
