//! Powering off: the ACPI fixed registers at 0x600 (ACPI 6.5, 4.8.3) and the port 0x8900
//! that Bochs made, where the word "Shutdown" does it.

use std::sync::Arc;

use crate::bus::MutDevice;
use crate::verdict::{StopLine, Success, Verdict};

/// Offset of PM1_STS: 16 bits, writing 1 clears. No event is ever raised: always 0.
const STATUS: usize = 0;
/// Offset of PM1_CNT: 16 bits.
const CONTROL: usize = 4;
/// PM1_CNT: the machine is in ACPI mode (there is no other mode here).
const SCI_EN: u16 = 1 << 0;
/// PM1_CNT: GBL_RLS and SLP_EN act when written and read as 0 (ACPI 6.5, table 4.17).
const WRITE_ONLY: u16 = 1 << 2 | SLP_EN;
/// PM1_CNT: enter the sleep state of SLP_TYP.
const SLP_EN: u16 = 1 << 13;

/// The PM1a event and control blocks: PM1_STS, PM1_EN, PM1_CNT, and two bytes that are
/// only stored.
///
/// Every SLP_TYP powers off. Tables name one state only, S5, with type 0; programs that
/// read no tables write what their author's machine had (QEMU's 0, Bochs' and others' 5 or
/// 7), and mean the same.
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
        registers[CONTROL] = SCI_EN as u8;
        Self { stop, registers }
    }
}

impl MutDevice for PowerControl {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let from = self.registers.iter().skip(offset as usize);
        data.iter_mut().zip(from).for_each(|(byte, register)| *byte = *register);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let to = self.registers.iter_mut().skip(offset as usize);
        to.zip(data).for_each(|(register, byte)| *register = *byte);
        self.registers[STATUS..STATUS + 2].fill(0);
        let control = &mut self.registers[CONTROL..CONTROL + 2];
        let value = u16::from_le_bytes([control[0], control[1]]);
        control.copy_from_slice(&(value & !WRITE_ONLY | SCI_EN).to_le_bytes());
        if value & SLP_EN != 0 {
            self.stop.stop(Verdict::Success(Success::PowerOff));
        }
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
}

#[cfg(test)]
mod tests {
    use super::super::testing::Stops;
    use super::*;

    const OFF: Verdict = Verdict::Success(Success::PowerOff);

    #[test]
    fn slp_en_powers_off_with_any_type_and_width() {
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
