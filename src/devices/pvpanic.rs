//! pvpanic (port 0x505): a guest's kernel tells that it has panicked.
//! Register layout: QEMU, docs/specs/pvpanic.

use std::sync::Arc;

use bitflags::bitflags;

use crate::bus::MutDevice;
use crate::state::{self, Malformed};
use crate::verdict::{Death, StopLine, Success, Verdict};

bitflags! {
    /// What a guest can tell; a read gives those that are understood.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Event: u8 {
        /// It panicked, and the host should act.
        const PANICKED = 1 << 0;
        /// It panicked, but goes on with a kernel for such a crash (kexec).
        const CRASH_LOADED = 1 << 1;
        /// It has shut down.
        const SHUTDOWN = 1 << 2;
    }
}

/// The port.
pub struct PvPanic {
    stop: Arc<dyn StopLine>,
    crash_loaded: bool,
}

impl PvPanic {
    /// Ends the machine through `stop`.
    pub fn new(stop: Arc<dyn StopLine>) -> Self {
        Self { stop, crash_loaded: false }
    }
}

impl MutDevice for PvPanic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(Event::all().bits());
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let event = Event::from_bits_truncate(data[0]);
        // Not an end: the guest's crash kernel writes a dump and ends the machine itself. A
        // later panic's verdict says that it was the crash kernel's.
        self.crash_loaded |= event.contains(Event::CRASH_LOADED);
        if event.contains(Event::PANICKED) {
            let detail = if self.crash_loaded { "reported by its crash kernel" } else { "" };
            self.stop.stop(Verdict::died(Death::Panic, detail));
        } else if event.contains(Event::SHUTDOWN) {
            self.stop.stop(Verdict::Success(Success::PowerOff));
        }
    }

    fn save(&self) -> Vec<u8> {
        let Self { stop: _, crash_loaded } = self;
        state::encode(&state::PvPanic { crash_loaded: *crash_loaded })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let state::PvPanic { crash_loaded } = state::decode(state)?;
        self.crash_loaded = crash_loaded;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Stops;
    use super::*;

    fn after(writes: &[u8]) -> Vec<Verdict> {
        let stops = Stops::new();
        let mut device = PvPanic::new(stops.clone());
        writes.iter().for_each(|byte| device.write(0, &[*byte]));
        stops.take()
    }

    #[test]
    fn what_each_bit_means() {
        assert_eq!(after(&[1]), [Verdict::died(Death::Panic, "")]);
        assert_eq!(after(&[2]), []);
        assert_eq!(after(&[4]), [Verdict::Success(Success::PowerOff)]);
        assert_eq!(after(&[0xF8, 0]), []);
        let late = Verdict::died(Death::Panic, "reported by its crash kernel");
        assert_eq!(after(&[2, 1]), [late]);
    }

    #[test]
    fn a_panic_counts_more_than_a_shutdown() {
        assert_eq!(after(&[5]), [Verdict::died(Death::Panic, "")]);
    }

    #[test]
    fn a_read_names_the_events() {
        let mut data = [0];
        PvPanic::new(Stops::new()).read(0, &mut data);
        assert_eq!(data, [7]);
    }
}
