//! Strict mode: which accesses that nothing claims end the guest, and in which words.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::counts::UnclaimedKind;
use super::halt::TICKS;
use super::recorder::Record;
use crate::kvm::{ExitKind, Vcpu};

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
    /// Who knows what no exit tells, where memory is guarded.
    pub guards: Option<Arc<dyn Guards>>,
}

/// What no exit tells of guarded memory, and what only looks like the guest's doing. `machine`
/// knows it: it takes the guest's instructions.
pub trait Guards: fmt::Debug + Send + Sync {
    /// Was it KVM that wrote, to patch a hypercall of the other vendor's? Then it is done here.
    fn patches(&self, write: &Record, vcpu: &Vcpu) -> bool;

    /// The access to guarded memory by which the instruction at RIP cannot go on: KVM can do
    /// some only in memory, and does not say so.
    fn blocked(&self, vcpu: &Vcpu) -> Option<Blocked>;
}

/// An access to guarded memory that KVM cannot do, nor tell of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// Is it a write?
    pub write: bool,
    /// Guest-physical.
    pub address: u64,
    /// What is moved, in words.
    pub what: String,
}

/// For how many ticks in a row a vCPU has stood at the same instruction.
#[derive(Debug, Default)]
pub struct Still {
    rip: u64,
    ticks: u32,
}

impl Still {
    /// Is it time to ask whether the instruction at `rip` can go on?
    pub(super) fn tick(&mut self, rip: u64) -> bool {
        let ticks = if rip == self.rip { self.ticks + 1 } else { 1 };
        *self = Self { rip, ticks: ticks.min(TICKS) };
        ticks >= TICKS
    }
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
            PioRead | PioWrite if self.io => Some(("io", "which no device takes")),
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
        Some(Violation { rule, place, kind, record: *record, finished: false, what: None })
    }

    /// The rule that an access which no exit told of breaks, by the instruction at `rip`.
    pub(super) fn check_blocked(&self, blocked: Blocked, rip: u64) -> Option<Violation> {
        let (kind, exit) = match blocked.write {
            true => (UnclaimedKind::MmioWrite, ExitKind::MmioWrite),
            false => (UnclaimedKind::MmioRead, ExitKind::MmioRead),
        };
        let address = blocked.address;
        let record = Record { rip, address, value: 0, time: 0, count: 1, size: 0, kind: exit };
        Some(Violation { what: Some(blocked.what), ..self.check(kind, &record)? })
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
    /// Had KVM finished the instruction before it asked? Then RIP is the next one's, but for a
    /// repeated one that has elements left.
    pub finished: bool,
    /// What was moved, in words, where no exit told of it. Then RIP is the instruction's.
    pub what: Option<String>,
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
        if let Some(what) = &self.what {
            let access = if self.kind == MmioRead { "read" } else { "write" };
            let to = if self.kind == MmioRead { "at" } else { "to" };
            return format!("a {access} of {what} {to} {address:#x}, {place}");
        }
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
        let place = if self.finished { "at or just before" } else { "at" };
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

    #[test]
    fn what_no_exit_tells_of_is_a_violation_by_the_same_rules() {
        let strict = Strict { text: vec![0x1000..0x2000, 0x3000..0x4000], ..Strict::default() };
        let blocked = |write| Blocked { write, address: 0x1008, what: "10 bytes".to_owned() };
        let violation = strict.check_blocked(blocked(true), 0x5000).unwrap();
        assert_eq!(
            violation.to_string(),
            "at 0x5000: a write of 10 bytes to 0x1008, in a read-only segment of the image (--strict=text)"
        );
        assert_eq!(strict.check_blocked(blocked(false), 0x5000), None);
    }

    #[test]
    fn only_a_vcpu_that_stands_still_is_asked() {
        let mut still = Still::default();
        assert!((0..10).all(|rip| !still.tick(rip % 2 + 1)));
        let asked: Vec<_> = (0..4).map(|_| still.tick(7)).collect();
        assert_eq!(asked, [false, false, true, true]);
    }
}
