//! The chipset's two reset registers: the reset control register at 0xCF9 (Intel ICH9
//! datasheet 13.7.5, RST_CNT) and system control port A at 0x92 (13.7.3, PORT92).

use std::sync::Arc;

use crate::bus::MutDevice;
use crate::state::{self, Malformed};
use crate::verdict::{Death, StopLine, Verdict};

fn reset(stop: &dyn StopLine, by: &str) {
    stop.stop(Verdict::died(Death::Reset, by));
}

/// RST_CNT bits that hold what is written: hard reset and full reset, which say what kind
/// a reset is to be. The reset bit itself reads as 0: who could read it has been reset.
const RST_CNT_KEPT: u8 = 1 << 1 | 1 << 3;
/// RST_CNT: reset now.
const RST_CNT_RESET: u8 = 1 << 2;

/// The register at 0xCF9.
pub struct ResetControl {
    stop: Arc<dyn StopLine>,
    kept: u8,
}

impl ResetControl {
    /// Ends the machine through `stop`.
    pub fn new(stop: Arc<dyn StopLine>) -> Self {
        Self { stop, kept: 0 }
    }
}

impl MutDevice for ResetControl {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.kept);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        self.kept = data[0] & RST_CNT_KEPT;
        if data[0] & RST_CNT_RESET != 0 {
            reset(&*self.stop, "by port 0xcf9");
        }
    }

    fn save(&self) -> Vec<u8> {
        let Self { stop: _, kept } = self;
        state::encode(&state::ResetControl { kept: *kept })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let state::ResetControl { kept } = state::decode(state)?;
        self.kept = kept;
        Ok(())
    }
}

/// PORT92: fast reset of the processor.
const PORT92_RESET: u8 = 1 << 0;
/// PORT92: address line 20 is not forced to 0. KVM has no such gate, so this is always so.
const PORT92_A20: u8 = 1 << 1;

/// The register at 0x92.
pub struct SystemControlA {
    stop: Arc<dyn StopLine>,
    value: u8,
}

impl SystemControlA {
    /// Ends the machine through `stop`.
    pub fn new(stop: Arc<dyn StopLine>) -> Self {
        Self { stop, value: PORT92_A20 }
    }
}

impl MutDevice for SystemControlA {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.value);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        self.value = data[0] & !PORT92_RESET | PORT92_A20;
        if data[0] & PORT92_RESET != 0 {
            reset(&*self.stop, "by port 0x92");
        }
    }

    fn save(&self) -> Vec<u8> {
        let Self { stop: _, value } = self;
        state::encode(&state::SystemControlA { value: *value })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let state::SystemControlA { value } = state::decode(state)?;
        self.value = value;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Stops;
    use super::*;

    fn read(device: &mut dyn MutDevice) -> u8 {
        let mut data = [0];
        device.read(0, &mut data);
        data[0]
    }

    #[test]
    fn bit_2_of_0xcf9_resets() {
        let stops = Stops::new();
        let mut device = ResetControl::new(stops.clone());
        device.write(0, &[0x02]);
        assert_eq!((read(&mut device), stops.take()), (0x02, vec![]));
        device.write(0, &[0x06]);
        assert_eq!(stops.take(), [Verdict::died(Death::Reset, "by port 0xcf9")]);
        assert_eq!(read(&mut device), 0x02);
        device.write(0, &[0xFB]);
        assert_eq!((read(&mut device), stops.take()), (0x0A, vec![]));
    }

    #[test]
    fn bit_0_of_0x92_resets_and_a20_stays_on() {
        let stops = Stops::new();
        let mut device = SystemControlA::new(stops.clone());
        assert_eq!(read(&mut device), 0x02);
        device.write(0, &[0xC0]);
        assert_eq!((read(&mut device), stops.take()), (0xC2, vec![]));
        device.write(0, &[0x03]);
        assert_eq!(stops.take(), [Verdict::died(Death::Reset, "by port 0x92")]);
        assert_eq!(read(&mut device), 0x02);
    }
}
