//! The devices of QEMU's `pc-testdev`, by which kvm-unit-tests exercise an emulator and
//! interrupt controllers. Addresses and behaviour: QEMU, hw/misc/pc-testdev.c; its copy of the
//! first ports at 0xE8 is left out, where the debug console is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::bus::{Device, MutDevice};
use crate::irq::{Gsi, IrqInputs};
use crate::mem::{self, GuestAddress, GuestMemory};
use crate::state::{self, Malformed};

use super::low_u32;

/// Bytes that read back what was written: ports (0xE0 to 0xE3), or memory (at 0xFF000000).
pub struct Scratch {
    bytes: Box<[u8]>,
    /// Something was written: without that all are zero.
    written: bool,
}

impl Scratch {
    /// Ports that it takes as such.
    pub const PORTS: u64 = 4;
    /// Addresses that it takes as memory.
    pub const MEMORY: u64 = 0x1_0000;

    /// `len` zeroes.
    pub fn new(len: u64) -> Self {
        Self { bytes: vec![0; len as usize].into(), written: false }
    }
}

impl MutDevice for Scratch {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let from = self.bytes.iter().skip(offset as usize);
        data.iter_mut().zip(from).for_each(|(byte, stored)| *byte = *stored);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let to = self.bytes.iter_mut().skip(offset as usize);
        to.zip(data).for_each(|(stored, byte)| *stored = *byte);
        self.written = true;
    }

    fn save(&self) -> Vec<u8> {
        let Self { bytes, written } = self;
        let last = if *written { bytes.iter().rposition(|byte| *byte != 0) } else { None };
        let bytes = bytes[..last.map_or(0, |last| last + 1)].to_vec();
        state::encode(&state::Scratch { bytes })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let state::Scratch { bytes } = state::decode(state)?;
        if self.written {
            self.bytes.fill(0);
        }
        let to = self.bytes.get_mut(..bytes.len());
        to.ok_or_else(|| Malformed("too many bytes".to_owned()))?.copy_from_slice(&bytes);
        self.written = !bytes.is_empty();
        Ok(())
    }
}

/// Takes the page of the 32-bit address that is written (0xE4) out of the host's page tables,
/// and so out of KVM's: the guest's next access to it faults there, and goes on.
pub struct FlushPage {
    memory: GuestMemory,
}

impl FlushPage {
    /// Ports that it takes.
    pub const LEN: u64 = 4;

    /// Of this memory.
    pub fn new(memory: GuestMemory) -> Self {
        Self { memory }
    }
}

impl Device for FlushPage {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, 4) = (offset, data.len()) {
            mem::unmap_page(&self.memory, GuestAddress(low_u32(data).into()));
        }
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&self, _state: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }
}

/// A byte a line (0x2000 to 0x2017): what is written is the level of that input of the
/// interrupt controllers, low for 0.
pub struct IrqLevels {
    inputs: Arc<dyn IrqInputs>,
    /// A bit a line that is high. Relaxed: it orders nothing.
    high: AtomicU32,
}

impl IrqLevels {
    /// Ports that it takes: the inputs of an I/O APIC.
    pub const LEN: u64 = 24;

    /// Drives `inputs`.
    pub fn new(inputs: Arc<dyn IrqInputs>) -> Self {
        Self { inputs, high: AtomicU32::new(0) }
    }
}

impl IrqLevels {
    fn set(&self, gsi: u32, high: bool) {
        let bit = 1 << (gsi & 31); // there are 24
        match high {
            true => self.high.fetch_or(bit, Ordering::Relaxed),
            false => self.high.fetch_and(!bit, Ordering::Relaxed),
        };
        self.inputs.set_level(Gsi(gsi), high);
    }
}

impl Device for IrqLevels {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (gsi, level) in (offset as u32..).zip(data) {
            self.set(gsi, *level != 0);
        }
    }

    fn save(&self) -> Vec<u8> {
        let Self { inputs: _, high } = self;
        state::encode(&state::IrqLevels { high: high.load(Ordering::Relaxed) })
    }

    /// Drives the lines that are not at the level that they had: the interrupt controllers do
    /// not save it.
    fn restore(&self, state: &[u8]) -> Result<(), Malformed> {
        let state::IrqLevels { high } = state::decode(state)?;
        let now = self.high.load(Ordering::Relaxed);
        let changed = (0..Self::LEN as u32).filter(|gsi| (high ^ now) >> gsi & 1 != 0);
        changed.for_each(|gsi| self.set(gsi, high >> gsi & 1 != 0));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::mem::Bytes;

    #[test]
    fn scratch_ports_keep_every_width() {
        let mut ports = Scratch::new(Scratch::PORTS);
        ports.write(0, &[1, 2, 3, 4]);
        ports.write(1, &[0x22]);
        ports.write(2, &[0x33, 0x44]);
        let mut data = [0; 4];
        ports.read(0, &mut data);
        assert_eq!(data, [1, 0x22, 0x33, 0x44]);
        ports.read(3, &mut data[..1]);
        assert_eq!(data[0], 0x44);
    }

    #[test]
    fn a_flushed_page_keeps_its_contents() {
        let memory = mem::create(1 << 20).unwrap();
        memory.write_obj(0x1122_3344_u32, GuestAddress(0x5008)).unwrap();
        let device = FlushPage::new(memory.clone());
        device.write(0, &0x5123_u32.to_le_bytes());
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x5008)).unwrap(), 0x1122_3344);
        memory.write_obj(5_u32, GuestAddress(0x5008)).unwrap();
        device.write(0, &0xFFFF_F000_u32.to_le_bytes());
        device.write(0, &[0x00, 0x50]);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x5008)).unwrap(), 5);
    }

    #[derive(Default)]
    struct Levels(Mutex<Vec<(u32, bool)>>);

    impl IrqInputs for Levels {
        fn set_level(&self, gsi: Gsi, high: bool) {
            self.0.lock().unwrap().push((gsi.0, high));
        }
    }

    #[test]
    fn each_byte_is_the_level_of_its_line() {
        let levels = Arc::new(Levels::default());
        let device = IrqLevels::new(levels.clone());
        device.write(14, &[1]);
        device.write(14, &[0]);
        device.write(22, &[0, 0x80]);
        assert_eq!(*levels.0.lock().unwrap(), [(14, true), (14, false), (22, false), (23, true)]);
    }
}
