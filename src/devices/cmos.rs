//! CMOS memory and the real-time clock (ports 0x70 and 0x71): where a guest reads how much
//! memory it has, and the time.
//!
//! Clock registers: Motorola MC146818A. Memory sizes: where PC BIOSes leave them, and
//! SeaBIOS and QEMU agree on them. The clock is a parameter and cannot be set: what a guest
//! writes to its registers vanishes. No interrupt is raised; the alarm wakes a machine that is
//! suspended to RAM, and does nothing else.

use std::time::Duration;

use crate::bus::MutDevice;
use crate::mem::layout::{HIGH_RAM_START, HOLE_START};
use crate::state::{self, Malformed};

/// The time since 1970-01-01 00:00 UTC.
pub type Clock = Box<dyn Fn() -> Duration + Send>;

/// Registers of the clock.
mod register {
    pub const SECONDS: u8 = 0x00;
    pub const SECONDS_ALARM: u8 = 0x01;
    pub const MINUTES: u8 = 0x02;
    pub const MINUTES_ALARM: u8 = 0x03;
    pub const HOURS: u8 = 0x04;
    pub const HOURS_ALARM: u8 = 0x05;
    pub const WEEKDAY: u8 = 0x06;
    pub const DAY: u8 = 0x07;
    pub const MONTH: u8 = 0x08;
    pub const YEAR: u8 = 0x09;
    pub const STATUS_A: u8 = 0x0A;
    pub const STATUS_B: u8 = 0x0B;
    pub const STATUS_C: u8 = 0x0C;
    pub const STATUS_D: u8 = 0x0D;
    pub const CENTURY: u8 = 0x32;
}

/// Status A: 32.768 kHz time base, 1024 Hz rate, as every BIOS sets it.
const STATUS_A_RATE: u8 = 0x26;
/// Status A: an update is in progress.
const UIP: u8 = 1 << 7;
/// UIP is set this long before each second (MC146818A, "Update Cycle"). A guest that waits
/// for the flag to come and go would wait for ever without it.
const UPDATE: Duration = Duration::from_micros(244);
/// Status B: the alarm is on.
const AIE: u8 = 1 << 5;
/// An alarm register of any value.
const ANY: u8 = 0xC0;
/// Status B: hours count to 24.
const HOURS_24: u8 = 1 << 1;
/// Status B: registers are binary, not BCD.
const BINARY: u8 = 1 << 2;
/// Seconds of a day.
const DAY_SECONDS: u64 = 86_400;
/// Status D: the battery is good, RAM and time are valid.
const VALID: u8 = 1 << 7;
/// Hours register in the 12-hour form: afternoon.
const PM: u8 = 1 << 7;
/// Port 0x70: bit 7 masks the NMI (there is none), the rest is the register.
const INDEX_MASK: u8 = 0x7F;

/// The two ports: index and data.
pub struct Cmos {
    clock: Clock,
    index: u8,
    bytes: [u8; 128],
}

impl Cmos {
    /// Ports that it takes.
    pub const LEN: u64 = 2;

    /// Of a machine with `ram` bytes.
    pub fn new(ram: u64, clock: Clock) -> Self {
        let mut bytes = [0; 128];
        bytes[usize::from(register::STATUS_B)] = HOURS_24;
        for (address, value, len) in memory_registers(ram) {
            bytes[address..address + len].copy_from_slice(&value.to_le_bytes()[..len]);
        }
        Self { clock, index: 0, bytes }
    }

    /// When, after `now`, the alarm of the clock that was saved so goes off; `None` where it is
    /// off, or set to a time that no day has. Both are times since 1970-01-01 00:00 UTC.
    pub fn alarm(saved: &state::Cmos, now: Duration) -> Option<Duration> {
        use register::*;
        let at = |index: u8| saved.bytes[usize::from(index)];
        let status_b = at(STATUS_B);
        let matches = |second: u64, register: u8, alarm: u8| {
            at(alarm) & ANY == ANY || at(alarm) == shown(register, second, status_b)
        };
        let first = now.as_secs() + 1;
        let found = (first..first + DAY_SECONDS).find(|second| {
            matches(*second, SECONDS, SECONDS_ALARM)
                && matches(*second, MINUTES, MINUTES_ALARM)
                && matches(*second, HOURS, HOURS_ALARM)
        });
        found.filter(|_| status_b & AIE != 0).map(Duration::from_secs)
    }

    fn read_register(&mut self) -> u8 {
        use register::*;
        let status_b = self.bytes[usize::from(STATUS_B)];
        match self.index {
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                shown(self.index, (self.clock)().as_secs(), status_b)
            }
            STATUS_A => {
                let left = 1_000_000_000 - (self.clock)().subsec_nanos();
                STATUS_A_RATE | if u128::from(left) <= UPDATE.as_nanos() { UIP } else { 0 }
            }
            STATUS_C => 0,
            STATUS_D => VALID,
            index => self.bytes[usize::from(index)],
        }
    }

    fn write_register(&mut self, value: u8) {
        self.bytes[usize::from(self.index)] = value;
    }
}

impl MutDevice for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            // The index cannot be read back.
            *byte = if offset + i as u64 == 1 { self.read_register() } else { 0xFF };
        }
    }

    /// A 16-bit write to the index port writes index and data, as on the ISA bus.
    fn write(&mut self, offset: u64, data: &[u8]) {
        for (i, byte) in data.iter().enumerate() {
            match offset + i as u64 {
                0 => self.index = byte & INDEX_MASK,
                1 => self.write_register(*byte),
                _ => {}
            }
        }
    }

    fn save(&self) -> Vec<u8> {
        let Self { clock: _, index, bytes } = self;
        state::encode(&state::Cmos { index: *index, bytes: *bytes })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let state::Cmos { index, bytes } = state::decode(state)?;
        (self.index, self.bytes) = (index & INDEX_MASK, bytes);
        Ok(())
    }
}

/// Address, value and length of each memory size register.
fn memory_registers(ram: u64) -> [(usize, u32, usize); 5] {
    /// Base memory in KiB, below the video memory.
    const BASE_KIB: u32 = 640;
    /// Where the second extended memory register begins to count.
    const SIXTEEN_MIB: u64 = 16 << 20;
    let low = ram.min(HOLE_START);
    let extended = (low.saturating_sub(HIGH_RAM_START) >> 10).min(0xFFFF) as u32;
    let above_16m = (low.saturating_sub(SIXTEEN_MIB) >> 16).min(0xFFFF) as u32;
    let above_4g = (ram.saturating_sub(HOLE_START) >> 16).min(0xFF_FFFF) as u32;
    [
        (0x15, BASE_KIB, 2),
        (0x17, extended, 2),
        (0x30, extended, 2),
        (0x34, above_16m, 2),
        (0x5B, above_4g, 3),
    ]
}

/// A register of the clock at `seconds` since 1970, as the guest reads it.
fn shown(index: u8, seconds: u64, status_b: u8) -> u8 {
    let value = field(index, seconds, status_b);
    let (mark, value) = (value & PM, value & !PM);
    mark | if status_b & BINARY != 0 { value } else { bcd(value) }
}

/// A register of the clock at `seconds` since 1970, in binary, [`PM`] apart.
fn field(index: u8, seconds: u64, status_b: u8) -> u8 {
    let (day, second) = (seconds / DAY_SECONDS, seconds % DAY_SECONDS);
    let (year, month, day_of_month) = civil(day);
    let hour = (second / 3600) as u8;
    match index {
        register::SECONDS => (second % 60) as u8,
        register::MINUTES => (second / 60 % 60) as u8,
        register::HOURS if status_b & HOURS_24 != 0 => hour,
        register::HOURS => ((hour + 11) % 12 + 1) | if hour >= 12 { PM } else { 0 },
        // 1970-01-01 was a Thursday; Sunday is 1.
        register::WEEKDAY => ((day + 4) % 7) as u8 + 1,
        register::DAY => day_of_month,
        register::MONTH => month,
        register::YEAR => (year % 100) as u8,
        _ => (year / 100 % 100) as u8,
    }
}

fn bcd(value: u8) -> u8 {
    ((value / 10) << 4) | (value % 10)
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar. Years are
/// counted from 1 March here, so that a leap day is a year's last.
fn civil(days_since_1970: u64) -> (u64, u8, u8) {
    /// 0000-03-01 to 1970-01-01.
    const EPOCH: u64 = 719_468;
    /// 400 years, after which the calendar repeats.
    const ERA: u64 = 146_097;
    let days = days_since_1970 + EPOCH;
    let (era, day_of_era) = (days / ERA, days % ERA);
    // Take out the leap days of the era so far; then years have 365 days.
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / (ERA - 1);
    let year = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    // From March, months come in groups of five with 153 days: 31, 30, 31, 30, 31.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (carry, month) = if month < 10 { (0, month + 3) } else { (1, month - 9) };
    (era * 400 + year + carry, month as u8, day as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Cmos {
        Cmos::new(128 << 20, Box::new(move || Duration::from_secs(seconds)))
    }

    fn read(cmos: &mut Cmos, index: u8) -> u8 {
        let mut data = [0];
        cmos.write(0, &[index]);
        cmos.read(1, &mut data);
        data[0]
    }

    fn sizes(ram: u64) -> [u64; 5] {
        let mut cmos = Cmos::new(ram, Box::new(|| Duration::ZERO));
        let mut byte = |index| u64::from(read(&mut cmos, index));
        let mut word = |index| byte(index) | byte(index + 1) << 8;
        [word(0x15), word(0x17), word(0x30), word(0x34), word(0x5B) | word(0x5D) << 16 & 0xFF_0000]
    }

    #[test]
    fn memory_sizes() {
        assert_eq!(sizes(1 << 20), [640, 0, 0, 0, 0]);
        assert_eq!(sizes(2 << 20), [640, 1024, 1024, 0, 0]);
        assert_eq!(sizes(16 << 20), [640, 15 << 10, 15 << 10, 0, 0]);
        assert_eq!(sizes(128 << 20), [640, 0xFFFF, 0xFFFF, 112 * 16, 0]);
        assert_eq!(sizes(3 << 30), [640, 0xFFFF, 0xFFFF, 0xC000 - 0x100, 0]);
        assert_eq!(sizes(8 << 30), [640, 0xFFFF, 0xFFFF, 0xC000 - 0x100, 5 << 14]);
        assert_eq!(sizes(u64::MAX), [640, 0xFFFF, 0xFFFF, 0xC000 - 0x100, 0xFF_FFFF]);
    }

    /// Seconds, minutes, hours, weekday, day, month, year, century.
    const CLOCK: [u8; 8] = [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32];

    #[test]
    fn the_time_in_bcd() {
        // Each from `date -u -d @SECONDS`.
        for (seconds, expected) in [
            (0, [0x00, 0x00, 0x00, 5, 0x01, 0x01, 0x70, 0x19]),
            (68_169_599, [0x59, 0x59, 0x23, 2, 0x28, 0x02, 0x72, 0x19]),
            (68_169_600, [0x00, 0x00, 0x00, 3, 0x29, 0x02, 0x72, 0x19]),
            (951_782_400, [0x00, 0x00, 0x00, 3, 0x29, 0x02, 0x00, 0x20]),
            (951_868_799, [0x59, 0x59, 0x23, 3, 0x29, 0x02, 0x00, 0x20]),
            (951_868_800, [0x00, 0x00, 0x00, 4, 0x01, 0x03, 0x00, 0x20]),
            (1_735_689_599, [0x59, 0x59, 0x23, 3, 0x31, 0x12, 0x24, 0x20]),
            (4_107_542_399, [0x59, 0x59, 0x23, 1, 0x28, 0x02, 0x00, 0x21]),
            (4_107_542_400, [0x00, 0x00, 0x00, 2, 0x01, 0x03, 0x00, 0x21]),
        ] {
            let mut cmos = at(seconds);
            assert_eq!(CLOCK.map(|index| read(&mut cmos, index)), expected, "{seconds}");
        }
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let mut expected = (1970, 1, 1);
        for day in 0..146_097 {
            assert_eq!(civil(day), expected);
            let (year, month, day) = expected;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let last = match month {
                2 => 28 + u8::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                (_, d) if d == last => (year, month + 1, 1),
                (_, d) => (year, month, d + 1),
            };
        }
    }

    #[test]
    fn binary_and_12_hours() {
        for (hour, binary, bcd) in
            [(0, 12, 0x12), (11, 11, 0x11), (12, 0x8C, 0x92), (23, 0x8B, 0x91)]
        {
            let mut cmos = at(hour * 3600);
            for (status_b, value) in [(0x04, binary), (0x00, bcd), (0x06, hour as u8)] {
                cmos.write(0, &[0x0B, status_b]);
                assert_eq!(read(&mut cmos, 0x04), value, "{hour} {status_b}");
            }
        }
    }

    #[test]
    fn the_alarm() {
        let alarm = |status_b, registers: [u8; 3], now: u64| {
            let mut cmos = at(now);
            for (index, value) in [(11, status_b), (1, registers[0]), (3, registers[1])] {
                cmos.write(0, &[index, value]);
            }
            cmos.write(0, &[5, registers[2]]);
            let saved = state::decode(&cmos.save()).unwrap();
            Cmos::alarm(&saved, Duration::from_millis(now * 1000 + 1)).map(|at| at.as_secs())
        };
        assert_eq!(alarm(0x22, [0xC0; 3], 7), Some(8));
        assert_eq!(alarm(0x02, [0xC0; 3], 7), None, "it is off");
        assert_eq!(alarm(0x22, [0x30, 0xFF, 0xC0], 30), Some(90), "BCD, the next minute");
        assert_eq!(alarm(0x26, [30, 0xFF, 0xC0], 29), Some(30), "binary");
        assert_eq!(alarm(0x22, [0, 0, 0x13], 0), Some(13 * 3600));
        assert_eq!(alarm(0x20, [0, 0, 0x81], 0), Some(13 * 3600), "one in the afternoon");
        assert_eq!(alarm(0x22, [0, 0, 0], 0), Some(86_400), "tomorrow");
        assert_eq!(alarm(0x22, [0x60, 0xC0, 0xC0], 0), None, "no minute has it");
    }

    #[test]
    fn status_registers() {
        let mut cmos = at(0);
        assert_eq!([0x0A, 0x0B, 0x0C, 0x0D].map(|i| read(&mut cmos, i)), [0x26, 2, 0, 0x80]);
        for (nanoseconds, a) in [(999_755_999, 0x26), (999_756_000, 0xA6), (999_999_999, 0xA6)] {
            let now = Duration::new(7, nanoseconds);
            assert_eq!(read(&mut Cmos::new(1 << 20, Box::new(move || now)), 0x0A), a);
        }
    }

    #[test]
    fn the_rest_is_memory_and_the_clock_is_not() {
        let mut cmos = at(0);
        for index in 0..128 {
            cmos.write(0, &[index | 0x80]);
            cmos.write(1, &[0x5A]);
        }
        assert_eq!([0x0E, 0x0F, 0x31, 0x7F].map(|i| read(&mut cmos, i)), [0x5A; 4]);
        assert_eq!(
            [0x00, 0x0A, 0x0C, 0x0D, 0x32].map(|i| read(&mut cmos, i)),
            [0, 0x26, 0, 0x80, 0x19]
        );
        let mut index = [0];
        cmos.read(0, &mut index);
        assert_eq!(index, [0xFF]);
    }
}
