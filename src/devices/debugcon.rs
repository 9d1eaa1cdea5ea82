//! The debug console at port 0xE9, as Bochs and QEMU have it: a byte written is printed.

use std::sync::Arc;

use super::Console;
use crate::bus::Device;
use crate::state::Malformed;

/// What a read gives: the guest's proof that somebody listens (QEMU, `debugcon`'s readback).
const PRESENT: u8 = 0xE9;

/// The debug console.
pub struct DebugConsole {
    console: Arc<Console>,
}

impl DebugConsole {
    /// Prints on `console`.
    pub fn new(console: Arc<Console>) -> Arc<Self> {
        Arc::new(Self { console })
    }
}

impl Device for DebugConsole {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(PRESENT);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.console.write(data);
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
    use super::super::testing;
    use super::*;

    #[test]
    fn prints_and_says_that_it_is_there() {
        let console = testing::console();
        let device = DebugConsole::new(console.clone());
        device.write(0, b"h");
        device.write(0, b"i");
        assert_eq!(console.captured(), b"hi");
        let mut data = [0];
        device.read(0, &mut data);
        assert_eq!(data, [0xE9]);
    }
}
