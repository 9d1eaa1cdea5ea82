//! The debug exit (ports 0xF4 and 0x501, where guests written for QEMU's `isa-debug-exit`
//! expect it): what is written is the guest's own exit code, 0 for success.

use std::sync::Arc;

use super::low_u32;
use crate::bus::Device;
use crate::state::Malformed;
use crate::verdict::{StopLine, Verdict};

/// A debug exit of four ports; 8, 16 or 32 bits may be written to any of them.
pub struct DebugExit {
    stop: Arc<dyn StopLine>,
}

impl DebugExit {
    /// Ports that it takes.
    pub const LEN: u64 = 4;

    /// Ends the machine through `stop`.
    pub fn new(stop: Arc<dyn StopLine>) -> Arc<Self> {
        Arc::new(Self { stop })
    }
}

impl Device for DebugExit {
    /// 0, as QEMU's.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.stop.stop(Verdict::from_guest_code(low_u32(data)));
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&self, _state: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Stops;
    use super::*;
    use crate::verdict::Success;

    #[test]
    fn every_width_is_the_code() {
        let stops = Stops::new();
        let device = DebugExit::new(stops.clone());
        let writes: [(u64, &[u8], Verdict); 5] = [
            (0, &[0], Verdict::Success(Success::DebugExit)),
            (0, &[42], Verdict::Failed { code: 42 }),
            (1, &[0x34, 0x12], Verdict::Failed { code: 0x1234 }),
            (0, &[0x78, 0x56, 0x34, 0x12], Verdict::Failed { code: 0x1234_5678 }),
            (3, &[255], Verdict::Failed { code: 255 }),
        ];
        for (offset, data, verdict) in writes {
            device.write(offset, data);
            assert_eq!(stops.take(), [verdict]);
        }
    }

    #[test]
    fn a_read_does_not_end_anything() {
        let stops = Stops::new();
        let mut data = [0xFF; 2];
        DebugExit::new(stops.clone()).read(0, &mut data);
        assert_eq!((data, stops.take()), ([0, 0], vec![]));
    }
}
