//! The flight recorder: the last exits of a vCPU as plain data, and who else may watch them.
//!
//! Called by the run loop once an exit. What it holds is read when the vCPU stands still.

use std::fmt;

use serde::Serialize;

use crate::kvm::{Exit, ExitKind, Kept, Vcpu, value_of};

/// Exits that are kept: enough to see how the guest came to its end, small enough (8 KiB a
/// vCPU) to stay in the first-level cache. A power of two: an index is masked.
const LEN: usize = 128;

/// One exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// RIP as KVM gave it. It may lie behind the instruction already: KVM's emulator finishes
    /// a write before it asks user space for it, and a read after.
    pub rip: u64,
    /// Port, guest-physical address, MSR, hypercall number; 0 for what has none. For a failure
    /// the number that goes with it: hardware reason, suberror, errno.
    pub address: u64,
    /// What was written, or what a read was answered with: the first eight bytes, the lowest
    /// first. Nothing of use where nobody has answered the read.
    pub value: u64,
    /// Nanoseconds since the vCPU began to run; 0 where nobody asked for the time.
    pub time: u64,
    /// Elements of a string instruction; 1 for others; how often in a row for
    /// [`ExitKind::Interrupted`].
    pub count: u32,
    /// Bytes an element; 0 for what moves none.
    pub size: u8,
    /// Why it was.
    pub kind: ExitKind,
}

impl Record {
    /// An exit that was kept; a read that was not answered has no value.
    pub fn of(exit: &Kept, time: u64) -> Self {
        let record = exit.look(|it| Self::new(exit.rip(), time, it));
        Self { count: exit.count(), ..record }
    }

    /// An exit, served or not.
    pub fn new(rip: u64, time: u64, exit: &Exit<'_>) -> Self {
        let new = |address, size, value| Self {
            rip,
            address,
            value,
            time,
            count: 1,
            size,
            kind: exit.kind(),
        };
        let string = |port: u16, size: usize, data: &[u8]| Self {
            count: (data.len() / size.max(1)) as u32,
            ..new(port.into(), size as u8, value_of(data))
        };
        match exit {
            Exit::PioIn { port, size, data } => string(*port, *size, data),
            Exit::PioOut { port, size, data } => string(*port, *size, data),
            Exit::MmioRead { address, data } => new(*address, data.len() as u8, value_of(data)),
            Exit::MmioWrite { address, data } => new(*address, data.len() as u8, value_of(data)),
            Exit::ReadMsr { index, .. } => new((*index).into(), 8, 0),
            Exit::WriteMsr { index, value, .. } => new((*index).into(), 8, *value),
            Exit::Hypercall { number, args, .. } => new(*number, 0, args[0]),
            Exit::FailEntry { reason } => new(*reason, 0, 0),
            Exit::InternalError(error) => new(error.suberror.into(), 0, 0),
            Exit::SystemEvent { kind } => new((*kind).into(), 0, 0),
            Exit::Debug { exception, dr6, .. } => new((*exception).into(), 0, *dr6),
            Exit::Failed { errno } => new(*errno as u64, 0, 0),
            Exit::Other { reason } => new((*reason).into(), 0, 0),
            Exit::Hlt | Exit::Shutdown | Exit::Hyperv { .. } => new(0, 0, 0),
            Exit::SetTpr | Exit::Interrupted => new(0, 0, 0),
        }
    }
}

/// As traces have it, without the time.
impl Serialize for Record {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields {
            exit: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            address: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            size: Option<u8>,
            #[serde(skip_serializing_if = "Option::is_none")]
            count: Option<u32>,
            #[serde(skip_serializing_if = "Option::is_none")]
            value: Option<u64>,
            rip: u64,
        }
        let &Self { rip, address, value, count, size, kind, .. } = self;
        let moves = size > 0;
        let fields = Fields {
            exit: kind.name(),
            address: kind.has_address().then_some(address),
            size: moves.then_some(size),
            count: (moves || count > 1).then_some(count),
            value: moves.then_some(value),
            rip,
        };
        fields.serialize(serializer)
    }
}

/// As one line, without the time.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rip, address, value, count, size, kind, .. } = self;
        write!(f, "{:<15}", kind.name())?;
        match kind {
            ExitKind::Hlt | ExitKind::Shutdown => write!(f, "{:46}", "")?,
            ExitKind::Interrupted => {
                let times =
                    if *count == 1 { " once".to_owned() } else { format!(" {count} times") };
                write!(f, "{times:<46}")?;
            }
            _ => {
                let times = if *count > 1 { format!(" x {count}") } else { String::new() };
                let what = format!(" {address:#x}");
                let moved = if *size > 0 {
                    format!(" = {value:#0width$x}{times}", width = 2 + 2 * usize::from(*size))
                } else {
                    String::new()
                };
                write!(f, "{what:<20}{moved:<26}")?;
            }
        }
        write!(f, " rip {rip:#x}")
    }
}

/// An exit in the ring: one cache line.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Entry {
    exit: Kept,
    time: u64,
}

const _: () = assert!(size_of::<Entry>() == 64);

/// The last exits of a vCPU.
pub struct Recorder {
    ring: Box<[Entry; LEN]>,
    /// Exits recorded since the start; its low bits say which entry is next.
    total: u64,
}

impl Clone for Recorder {
    fn clone(&self) -> Self {
        Self { ring: self.ring.clone(), total: self.total }
    }

    /// Allocates nothing.
    fn clone_from(&mut self, other: &Self) {
        self.ring.clone_from(&other.ring);
        self.total = other.total;
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self { ring: Box::new([Entry::default(); LEN]), total: 0 }
    }
}

impl Recorder {
    /// Records an exit as KVM gave it.
    #[inline]
    pub fn note(&mut self, exit: Kept) {
        self.ring[self.total as usize % LEN].exit = exit;
        self.total = self.total.wrapping_add(1);
    }

    /// Completes the last one: when it came. Where nobody asks for times each stays 0.
    #[inline]
    pub(super) fn stamp(&mut self, time: u64) {
        self.ring[self.position(1)].time = time;
    }

    /// Completes the last one: what a read was answered with.
    #[inline]
    pub fn answer(&mut self, data: &[u8]) {
        self.ring[self.position(1)].exit.answer(data);
    }

    /// The last one; an empty one before the first.
    pub fn last(&self) -> Record {
        self.record(1)
    }

    fn record(&self, back: u64) -> Record {
        let Entry { exit, time } = &self.ring[self.position(back)];
        Record::of(exit, *time)
    }

    fn position(&self, back: u64) -> usize {
        self.total.wrapping_sub(back) as usize % LEN
    }

    /// Makes one entry of the interruptions in a row: ticks would wash out what the guest did.
    #[cold]
    pub(super) fn merge_interrupted(&mut self) {
        let (mut last, before) = (self.ring[self.position(1)], self.position(2));
        let before = &mut self.ring[before];
        if last.exit.absorb(&before.exit) {
            *before = last;
            self.total -= 1;
        }
    }

    /// The last exits, at most `most` of them, the oldest first.
    pub fn tail(&self, most: usize) -> Vec<Record> {
        let kept = self.total.min(LEN as u64).min(most as u64);
        (1..=kept).rev().map(|back| self.record(back)).collect()
    }
}

/// Somebody who watches all exits of one vCPU, for a price: traces, statistics, profiles.
pub trait Observer: Send {
    /// KVM_RUN came back, or the vCPU goes on after it stood still; gives the time to record.
    fn begin(&mut self) -> u64;
    /// The exit was dealt with.
    fn end(&mut self, record: &Record);
    /// The vCPU was interrupted, and will go on.
    fn tick(&mut self, vcpu: &mut Vcpu);
    /// Hands in what was seen since the last time, for others to read: the vCPU stands still,
    /// or runs no more.
    fn publish(&mut self);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::testing::{interruption, pio};

    #[test]
    fn the_last_exits_are_kept_in_order() {
        let mut recorder = Recorder::default();
        assert_eq!(recorder.tail(8), []);
        for rip in 0..300 {
            recorder.note(pio(false, rip, 1, &[7]));
        }
        let rips: Vec<_> = recorder.tail(3).iter().map(|record| record.rip).collect();
        assert_eq!(rips, [297, 298, 299]);
        assert_eq!(recorder.tail(usize::MAX).len(), LEN);
        assert_eq!(recorder.tail(usize::MAX)[0].rip, 300 - LEN as u64);
    }

    #[test]
    fn reads_get_their_answer_and_strings_their_elements() {
        let mut recorder = Recorder::default();
        recorder.note(pio(true, 0x20, 2, &[0; 6]));
        recorder.stamp(5);
        recorder.answer(&[1, 2, 3, 4, 5, 6]);
        let expected = Record {
            rip: 0x20,
            address: 0x3F8,
            value: 0x0605_0403_0201,
            time: 5,
            count: 3,
            size: 2,
            kind: ExitKind::PioIn,
        };
        assert_eq!(recorder.last(), expected);
    }

    #[test]
    fn interruptions_in_a_row_are_one_record() {
        let mut recorder = Recorder::default();
        recorder.note(pio(false, 0x10, 1, &[0]));
        for rip in 1..=3 {
            recorder.note(interruption(rip));
            recorder.merge_interrupted();
        }
        recorder.note(pio(false, 0x20, 1, &[0]));
        let tail = recorder.tail(9);
        assert_eq!(
            tail.iter().map(|r| (r.rip, r.count)).collect::<Vec<_>>(),
            [(0x10, 1), (3, 3), (0x20, 1)]
        );
    }

    #[test]
    fn a_record_is_a_line() {
        let record = Record::new(0x10_0042, 0, &Exit::PioOut { port: 0x3F8, size: 1, data: b"A" });
        let words: Vec<_> = record.to_string().split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["pio_out", "0x3f8", "=", "0x41", "rip", "0x100042"]);
    }
}
