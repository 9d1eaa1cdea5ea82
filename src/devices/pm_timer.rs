//! The ACPI power management timer (ACPI 6.5, 4.8.3.3): a counter that a guest can tell the
//! time by without knowing its processor's clock. The clock is a parameter.

use std::time::Duration;

use crate::bus::Device;
use crate::state::Malformed;

/// The time since the machine began.
pub type Uptime = Box<dyn Fn() -> Duration + Send + Sync>;

/// Ticks a second.
const FREQUENCY: u128 = 3_579_545;

/// PM_TMR: 32 bits, as the FADT's TMR_VAL_EXT says; they only count up. It raises no interrupt.
pub struct PmTimer {
    uptime: Uptime,
}

impl PmTimer {
    /// Ports that it takes.
    pub const LEN: u64 = 4;

    /// Counts by `uptime`.
    pub fn new(uptime: Uptime) -> Self {
        Self { uptime }
    }
}

impl Device for PmTimer {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let ticks = (self.uptime)().as_nanos() * FREQUENCY / 1_000_000_000;
        let register = (ticks as u32).to_le_bytes();
        let from = register.iter().skip(offset as usize);
        data.iter_mut().zip(from).for_each(|(byte, register)| *byte = *register);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}

    /// The time is the host's.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&self, _state: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: Duration, offset: u64) -> u32 {
        let mut data = [0; 4];
        let len = 4 - offset as usize;
        PmTimer::new(Box::new(move || time)).read(offset, &mut data[..len]);
        u32::from_le_bytes(data)
    }

    #[test]
    fn it_counts_the_time() {
        assert_eq!(at(Duration::ZERO, 0), 0);
        assert_eq!(at(Duration::from_secs(1), 0), 3_579_545);
        assert_eq!(at(Duration::from_micros(100), 0), 357);
        assert_eq!(at(Duration::from_secs(1), 1), 3_579_545 >> 8);
    }

    #[test]
    fn after_twenty_minutes_it_begins_again() {
        let round = Duration::from_nanos((1_u64 << 32) * 1_000_000_000 / 3_579_545);
        assert!(at(round - Duration::from_millis(1), 0) > 0xFFFF_0000);
        assert!(at(round + Duration::from_millis(1), 0) < 0x1_0000);
    }

    #[test]
    fn writes_change_nothing() {
        let timer = PmTimer::new(Box::new(|| Duration::from_secs(1)));
        timer.write(0, &[0; 4]);
        let mut data = [0; 4];
        timer.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), 3_579_545);
    }
}
