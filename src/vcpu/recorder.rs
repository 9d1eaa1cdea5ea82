//! The flight recorder: the last exits of a vCPU as plain data, and who else may watch them.
//!
//! Called by the run loop once an exit. What it holds is read when the vCPU stands still.

use std::fmt;

use crate::kvm::{Exit, ExitKind, Vcpu};

/// Exits that are kept: enough to see how the guest came to its end, small enough (5 KiB a
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
    /// first.
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
    /// An exit as KVM gave it; a read has no value yet.
    #[inline]
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
        let string = |port: u16, size: usize, data: &[u8], value| Self {
            count: (data.len() as u32) >> size.trailing_zeros(),
            ..new(port.into(), size as u8, value)
        };
        match exit {
            Exit::PioIn { port, size, data } => string(*port, *size, data, 0),
            Exit::PioOut { port, size, data } => string(*port, *size, data, value_of(data)),
            Exit::MmioRead { address, data } => new(*address, data.len() as u8, 0),
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
            Exit::Hlt | Exit::Shutdown | Exit::Interrupted => new(0, 0, 0),
        }
    }
}

/// As one line, without the time.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rip, address, value, count, size, kind, .. } = self;
        write!(f, "{:<15}", kind.name())?;
        match kind {
            ExitKind::Hlt | ExitKind::Shutdown => write!(f, "{:46}", "")?,
            ExitKind::Interrupted => write!(f, "{:<46}", format!(" {count} times"))?,
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

/// The first eight bytes as a number.
#[inline]
fn value_of(data: &[u8]) -> u64 {
    match *data {
        [a] => a.into(),
        [a, b] => u16::from_le_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h, ..] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)),
    }
}

/// The last exits of a vCPU.
pub struct Recorder {
    ring: Box<[Record; LEN]>,
    /// Exits recorded since the start; its low bits say which record is next.
    total: u64,
}

impl Default for Recorder {
    fn default() -> Self {
        let nothing = Exit::Other { reason: 0 };
        Self { ring: Box::new([Record::new(0, 0, &nothing); LEN]), total: 0 }
    }
}

impl Recorder {
    /// Records an exit as KVM gave it.
    #[inline]
    pub fn note(&mut self, rip: u64, time: u64, exit: &Exit<'_>) {
        self.ring[self.total as usize % LEN] = Record::new(rip, time, exit);
        self.total = self.total.wrapping_add(1);
    }

    /// Completes the last one: what a read was answered with.
    #[inline]
    pub fn answer(&mut self, data: &[u8]) {
        self.ring[self.position(1)].value = value_of(data);
    }

    /// The last one; an empty one before the first.
    #[inline]
    pub fn last(&self) -> &Record {
        &self.ring[self.position(1)]
    }

    fn position(&self, back: u64) -> usize {
        self.total.wrapping_sub(back) as usize % LEN
    }

    /// Makes one record of the interruptions in a row: ticks would wash out what the guest did.
    #[cold]
    pub(super) fn merge_interrupted(&mut self) {
        let (last, before) = (*self.last(), self.position(2));
        let before = &mut self.ring[before];
        if self.total >= 2 && before.kind == ExitKind::Interrupted {
            *before = Record { count: before.count.saturating_add(1), ..last };
            self.total -= 1;
        }
    }

    /// The last exits, at most `most` of them, the oldest first.
    pub fn tail(&self, most: usize) -> Vec<Record> {
        let kept = self.total.min(LEN as u64).min(most as u64);
        (1..=kept).rev().map(|back| self.ring[self.position(back)]).collect()
    }
}

/// Somebody who watches all exits of one vCPU, for a price: traces, statistics, profiles.
pub trait Observer: Send {
    /// KVM_RUN came back; gives the time to record.
    fn begin(&mut self) -> u64;
    /// The exit was dealt with.
    fn end(&mut self, record: &Record);
    /// The vCPU was interrupted, and will go on.
    fn tick(&mut self, vcpu: &Vcpu);
    /// The vCPU runs no more.
    fn finish(&mut self);
}

/// Nobody. The run loop is compiled for this one too, so that it costs nothing.
impl Observer for () {
    #[inline]
    fn begin(&mut self) -> u64 {
        0
    }
    #[inline]
    fn end(&mut self, _: &Record) {}
    #[inline]
    fn tick(&mut self, _: &Vcpu) {}
    #[inline]
    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(recorder: &mut Recorder, port: u16, data: &[u8]) {
        recorder.note(0x1000, 0, &Exit::PioOut { port, size: 1, data });
    }

    #[test]
    fn the_last_exits_are_kept_in_order() {
        let mut recorder = Recorder::default();
        assert_eq!(recorder.tail(8), []);
        for port in 0..300 {
            out(&mut recorder, port, &[7]);
        }
        let ports: Vec<_> = recorder.tail(3).iter().map(|record| record.address).collect();
        assert_eq!(ports, [297, 298, 299]);
        assert_eq!(recorder.tail(usize::MAX).len(), LEN);
        assert_eq!(recorder.tail(usize::MAX)[0].address, 300 - LEN as u64);
    }

    #[test]
    fn reads_get_their_answer_and_strings_their_elements() {
        let mut recorder = Recorder::default();
        let mut data = [0; 6];
        recorder.note(0x20, 5, &Exit::PioIn { port: 0x60, size: 2, data: &mut data });
        recorder.answer(&[1, 2, 3, 4, 5, 6]);
        let expected = Record {
            rip: 0x20,
            address: 0x60,
            value: 0x0605_0403_0201,
            time: 5,
            count: 3,
            size: 2,
            kind: ExitKind::PioIn,
        };
        assert_eq!(*recorder.last(), expected);
    }

    #[test]
    fn interruptions_in_a_row_are_one_record() {
        let mut recorder = Recorder::default();
        out(&mut recorder, 1, &[0]);
        for rip in 1..=3 {
            recorder.note(rip, 0, &Exit::Interrupted);
            recorder.merge_interrupted();
        }
        out(&mut recorder, 2, &[0]);
        let tail = recorder.tail(9);
        assert_eq!(tail.iter().map(|r| r.address).collect::<Vec<_>>(), [1, 0, 2]);
        assert_eq!((tail[1].count, tail[1].rip), (3, 3));
    }

    #[test]
    fn values_of_every_length() {
        assert_eq!(value_of(&[]), 0);
        assert_eq!(value_of(&[1, 2]), 0x0201);
        assert_eq!(value_of(&[1, 2, 3]), 0x03_0201);
        assert_eq!(value_of(&[1, 2, 3, 4]), 0x0403_0201);
        assert_eq!(value_of(&[1, 2, 3, 4, 5, 6, 7, 8, 9]), 0x0807_0605_0403_0201);
    }

    #[test]
    fn a_record_is_a_line() {
        let record = Record::new(0x10_0042, 0, &Exit::PioOut { port: 0x3F8, size: 1, data: b"A" });
        let words: Vec<_> = record.to_string().split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["pio_out", "0x3f8", "=", "0x41", "rip", "0x100042"]);
    }
}
