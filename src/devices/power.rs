//! Powering off, and suspending to RAM: the ACPI fixed registers at 0x600 (ACPI 6.5, 4.8.3),
//! and the port 0x8900 that Bochs made, where the word "Shutdown" powers off.

use std::sync::Arc;

use crate::bus::MutDevice;
use crate::state::{self, Malformed};
use crate::verdict::{StopLine, Success, Verdict};

/// Offset of PM1_STS: 16 bits, writing 1 clears. Only waking up sets any.
const STATUS: usize = 0;
/// Offset of PM1_EN: 16 bits.
const ENABLE: usize = 2;
/// Offset of PM1_CNT: 16 bits.
const CONTROL: usize = 4;
/// PM1_CNT: the machine is in ACPI mode (there is no other mode here).
const SCI_EN: u16 = 1 << 0;
/// PM1_CNT: GBL_RLS and SLP_EN act when written and read as 0 (ACPI 6.5, table 4.17).
const WRITE_ONLY: u16 = 1 << 2 | SLP_EN;
/// PM1_CNT: enter the sleep state of SLP_TYP.
const SLP_EN: u16 = 1 << 13;
/// PM1_CNT: SLP_TYP.
const SLP_TYP: u16 = 7 << 10;
/// SLP_TYP of S3, as the DSDT has it.
const S3: u16 = 1 << 10;
/// PM1_STS and PM1_EN: the clock's alarm.
const RTC: u16 = 1 << 10;
/// PM1_STS: the machine was asleep.
const WAK_STS: u16 = 1 << 15;

/// The PM1a event and control blocks: PM1_STS, PM1_EN, PM1_CNT, and two bytes that are
/// only stored.
///
/// SLP_TYP 1 suspends to RAM, every other powers off. Tables name S3 with type 1, as QEMU's do,
/// and S5 with type 0; programs that read no tables write what their author's machine had
/// (QEMU's 0, Bochs' and others' 5 or 7), and mean S5.
pub struct PowerControl {
    stop: Arc<dyn StopLine>,
    registers: [u8; PowerControl::LEN as usize],
}

impl PowerControl {
    /// Ports that it takes: the event block's 4, the control block at 4.
    pub const LEN: u64 = 8;

    /// Ends the machine through `stop`.
    pub fn new(stop: Arc<dyn StopLine>) -> Self {
        let mut registers = [0; Self::LEN as usize];
        set_word(&mut registers, CONTROL, SCI_EN);
        Self { stop, registers }
    }

    /// Does the clock's alarm wake the machine that this was saved of?
    pub fn wakes_by_clock(saved: &state::PowerControl) -> bool {
        word(&saved.registers, ENABLE) & RTC != 0
    }

    /// What a machine finds that the clock's alarm has woken (ACPI 6.5, table 4.12).
    pub fn woken_by_clock() -> state::PowerControl {
        let mut registers = [0; Self::LEN as usize];
        set_word(&mut registers, STATUS, WAK_STS | RTC);
        set_word(&mut registers, CONTROL, SCI_EN);
        state::PowerControl { registers }
    }
}

fn word(registers: &[u8; PowerControl::LEN as usize], at: usize) -> u16 {
    u16::from_le_bytes([registers[at], registers[at + 1]])
}

fn set_word(registers: &mut [u8; PowerControl::LEN as usize], at: usize, value: u16) {
    registers[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

impl MutDevice for PowerControl {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let from = self.registers.iter().skip(offset as usize);
        data.iter_mut().zip(from).for_each(|(byte, register)| *byte = *register);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let status = word(&self.registers, STATUS);
        set_word(&mut self.registers, STATUS, 0);
        let to = self.registers.iter_mut().skip(offset as usize);
        to.zip(data).for_each(|(register, byte)| *register = *byte);
        let cleared = word(&self.registers, STATUS);
        set_word(&mut self.registers, STATUS, status & !cleared);
        let value = word(&self.registers, CONTROL);
        set_word(&mut self.registers, CONTROL, value & !WRITE_ONLY | SCI_EN);
        match (value & SLP_EN != 0, value & SLP_TYP) {
            (true, S3) => self.stop.stop(Verdict::Success(Success::Suspended)),
            (true, _) => self.stop.stop(Verdict::Success(Success::PowerOff)),
            (false, _) => {}
        }
    }

    fn save(&self) -> Vec<u8> {
        let Self { stop: _, registers } = self;
        state::encode(&state::PowerControl { registers: *registers })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let state::PowerControl { registers } = state::decode(state)?;
        self.registers = registers;
        Ok(())
    }
}

/// The word that the port at 0x8900 waits for.
const WORD: &[u8] = b"Shutdown";

/// The port at 0x8900.
pub struct ShutdownPort {
    stop: Arc<dyn StopLine>,
    matched: usize,
}

impl ShutdownPort {
    /// Ends the machine through `stop`.
    pub fn new(stop: Arc<dyn StopLine>) -> Self {
        Self { stop, matched: 0 }
    }
}

impl MutDevice for ShutdownPort {
    /// All ones: as if nobody were there.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xFF);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        for &byte in data {
            // The word's first letter comes only once in it, so that a byte that does not
            // fit can begin a new word and nothing else.
            self.matched = match WORD.get(self.matched) {
                Some(&next) if next == byte => self.matched + 1,
                _ => usize::from(byte == WORD[0]),
            };
            if self.matched == WORD.len() {
                self.matched = 0;
                self.stop.stop(Verdict::Success(Success::PowerOff));
            }
        }
    }

    fn save(&self) -> Vec<u8> {
        let Self { stop: _, matched } = self;
        state::encode(&state::ShutdownPort { matched: *matched as u8 }) // less than the word
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let state::ShutdownPort { matched } = state::decode(state)?;
        self.matched = matched.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Stops;
    use super::*;

    const OFF: Verdict = Verdict::Success(Success::PowerOff);

    #[test]
    fn type_1_suspends() {
        let stops = Stops::new();
        let mut device = PowerControl::new(stops.clone());
        device.write(2, &0x400_u16.to_le_bytes());
        device.write(4, &0x2400_u16.to_le_bytes());
        assert_eq!(stops.take(), [Verdict::Success(Success::Suspended)]);
        let saved = state::decode(&device.save()).unwrap();
        assert!(PowerControl::wakes_by_clock(&saved));
        device.write(2, &[0, 0]);
        assert!(!PowerControl::wakes_by_clock(&state::decode(&device.save()).unwrap()));
    }

    #[test]
    fn what_woke_it_stands_until_it_is_cleared() {
        let mut device = PowerControl::new(Stops::new());
        device.restore(&state::encode(&PowerControl::woken_by_clock())).unwrap();
        let mut status = |writes: &[(u64, [u8; 2])]| {
            let mut data = [0; 2];
            writes.iter().for_each(|(offset, data)| device.write(*offset, data));
            device.read(0, &mut data);
            u16::from_le_bytes(data)
        };
        assert_eq!(status(&[]), 0x8400);
        assert_eq!(status(&[(2, [0xFF, 0xFF]), (4, [1, 0]), (0, [0xFF, 0x7B])]), 0x8400);
        assert_eq!(status(&[(0, [0, 0x04])]), 0x8000);
        assert_eq!(status(&[(0, [0, 0x80])]), 0);
    }

    #[test]
    fn slp_en_powers_off_with_any_other_type_and_width() {
        let stops = Stops::new();
        let mut device = PowerControl::new(stops.clone());
        let writes: [(u64, &[u8]); 5] = [
            (4, &[0x00, 0x20]),
            (4, &[0x01, 0x34]),
            (5, &[0x20]),
            (4, &[0, 0x3C, 0, 0]),
            (0, &[0, 0, 0, 0, 0, 0x20, 0, 0]),
        ];
        for (offset, data) in writes {
            device.write(offset, data);
            assert_eq!(stops.take(), [OFF], "{offset} {data:x?}");
        }
    }

    #[test]
    fn everything_else_does_not() {
        let stops = Stops::new();
        let mut device = PowerControl::new(stops.clone());
        device.write(4, &[0xFF, 0x1C]);
        device.write(0, &[0xFF; 4]);
        device.write(6, &[0xFF, 0xFF]);
        let mut data = [0; 8];
        device.read(0, &mut data);
        assert_eq!(data, [0, 0, 0xFF, 0xFF, 0xFB, 0x1C, 0xFF, 0xFF]);
        assert_eq!(stops.take(), []);
    }

    #[test]
    fn the_machine_is_in_acpi_mode() {
        let mut device = PowerControl::new(Stops::new());
        let mut data = [0; 2];
        device.read(4, &mut data);
        assert_eq!(data, [1, 0]);
        device.write(4, &[0, 0]);
        device.read(4, &mut data);
        assert_eq!(data, [1, 0]);
    }

    #[test]
    fn the_word_shutdown_powers_off() {
        for (text, times) in [
            ("Shutdown", 1),
            ("ShutdownShutdown", 2),
            ("SShutdown", 1),
            ("ShutShutdown", 1),
            ("shutdown", 0),
            ("Shut down", 0),
            ("hutdown", 0),
            ("Shutdow", 0),
        ] {
            let stops = Stops::new();
            let mut device = ShutdownPort::new(stops.clone());
            text.bytes().for_each(|byte| device.write(0, &[byte]));
            assert_eq!(stops.take(), vec![OFF; times], "{text}");
        }
    }
}
