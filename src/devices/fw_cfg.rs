//! The firmware configuration device (ports 0x510 and 0x511): where guests written for QEMU
//! read how much memory and how many processors there are.
//!
//! Interface: QEMU, docs/specs/fw_cfg.rst. A 16-bit write to the first port selects an item and
//! sets back the position; each byte read from the second is the item's next, and 0 behind its
//! end and for an item that is not there. No item can be written, and there is no DMA.

use crate::bus::MutDevice;
use crate::state::{self, Malformed};

/// Items, by the selectors of fw_cfg.rst and QEMU's include/standard-headers/linux/qemu_fw_cfg.h.
mod item {
    pub const SIGNATURE: u16 = 0x00;
    pub const ID: u16 = 0x01;
    pub const RAM_SIZE: u16 = 0x03;
    pub const NOGRAPHIC: u16 = 0x04;
    pub const NB_CPUS: u16 = 0x05;
    pub const MAX_CPUS: u16 = 0x0F;
    pub const FILE_DIR: u16 = 0x19;
}

/// ID: the interface of the two ports, and no other.
const TRADITIONAL: u32 = 1 << 0;

/// The longest item, in bytes.
const ITEM_LEN: usize = 8;

/// The two ports: selector and data.
#[derive(Debug)]
pub struct FwCfg {
    /// Bytes of RAM.
    ram: u64,
    cpus: u16,
    selected: u16,
    /// The next byte's position, at most [`ITEM_LEN`].
    position: usize,
}

impl FwCfg {
    /// Ports that it takes.
    pub const LEN: u64 = 2;

    /// Of a machine with `ram` bytes and `cpus` processors.
    pub fn new(ram: u64, cpus: u32) -> Self {
        let cpus = u16::try_from(cpus).unwrap_or(u16::MAX);
        Self { ram, cpus, selected: item::SIGNATURE, position: 0 }
    }

    /// The selected item, with zeroes behind it.
    fn item(&self) -> [u8; ITEM_LEN] {
        match self.selected {
            item::SIGNATURE => *b"QEMU\0\0\0\0",
            item::ID => u64::from(TRADITIONAL).to_le_bytes(),
            item::RAM_SIZE => self.ram.to_le_bytes(),
            item::NOGRAPHIC => 1_u64.to_le_bytes(),
            item::NB_CPUS | item::MAX_CPUS => u64::from(self.cpus).to_le_bytes(),
            // A count of files: none.
            item::FILE_DIR => [0; ITEM_LEN],
            _ => [0; ITEM_LEN],
        }
    }

    fn next_byte(&mut self) -> u8 {
        let Some(&byte) = self.item().get(self.position) else { return 0 };
        self.position += 1;
        byte
    }
}

impl MutDevice for FwCfg {
    /// The selector cannot be read back.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = if offset + i as u64 == 1 { self.next_byte() } else { 0 };
        }
    }

    /// Only the selector can be written, and only whole.
    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, [low, high]) = (offset, data) {
            (self.selected, self.position) = (u16::from_le_bytes([*low, *high]), 0);
        }
    }

    fn save(&self) -> Vec<u8> {
        let Self { ram: _, cpus: _, selected, position } = self;
        state::encode(&state::FwCfg { selected: *selected, position: *position as u8 })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let state::FwCfg { selected, position } = state::decode(state)?;
        (self.selected, self.position) = (selected, position.into());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> FwCfg {
        FwCfg::new(0x1_2345_6000, 3)
    }

    fn read(device: &mut FwCfg, selector: u16, len: usize) -> Vec<u8> {
        device.write(0, &selector.to_le_bytes());
        let mut byte = || {
            let mut data = [0xAA];
            device.read(1, &mut data);
            data[0]
        };
        (0..len).map(|_| byte()).collect()
    }

    #[test]
    fn items_are_read_byte_by_byte() {
        let mut device = device();
        assert_eq!(read(&mut device, 0x00, 4), b"QEMU");
        assert_eq!(read(&mut device, 0x01, 4), [1, 0, 0, 0]);
        assert_eq!(read(&mut device, 0x03, 8), [0, 0x60, 0x45, 0x23, 1, 0, 0, 0]);
        assert_eq!(read(&mut device, 0x04, 2), [1, 0]);
        assert_eq!(read(&mut device, 0x05, 2), [3, 0]);
        assert_eq!(read(&mut device, 0x0F, 2), [3, 0]);
        assert_eq!(read(&mut device, 0x19, 4), [0; 4]);
    }

    #[test]
    fn behind_an_item_are_zeroes_for_ever() {
        let mut device = device();
        assert_eq!(read(&mut device, 0x00, 1000)[4..], [0; 996]);
        assert_eq!(read(&mut device, 0x4242, 10), [0; 10]);
        assert_eq!(read(&mut device, 0x00, 2), *b"QE", "a selection starts the item again");
    }

    #[test]
    fn only_a_whole_selector_selects() {
        let mut device = device();
        assert_eq!(read(&mut device, 0x05, 1), [3]);
        device.write(0, &[0]);
        device.write(1, &[0]);
        let mut data = [0xAA; 2];
        device.read(0, &mut data);
        assert_eq!(data, [0, 0], "the second byte of the count, at the second port");
    }
}
