//! The devices of the platform. Built by `machine`, called by vCPUs through the bus; no
//! device knows KVM, a vCPU or the machine.
//!
//! # How to add a device
//! One file here and one row in `machine/platform.rs`. The file implements [`Device`] (many
//! threads at once) or [`MutDevice`] (behind a `Mutex`); offsets start at 0, so the address
//! stands in the row only. What a device does to the outside is a parameter of its
//! constructor: a [`Console`], an [`IrqLine`](crate::irq::IrqLine), a
//! [`StopLine`](crate::verdict::StopLine), a clock. So its test needs no /dev/kvm, and
//! drives the device as a guest does. What a guest can change of it is saved and restored
//! ([`crate::bus::Device::save`]), in a type of [`crate::state`]. `tests/device_properties.rs` holds every device to:
//! no access panics, whatever its size, offset and value.
//!
//! [`Device`]: crate::bus::Device
//! [`MutDevice`]: crate::bus::MutDevice

pub mod cmos;
pub mod console;
pub mod debug_exit;
pub mod debugcon;
pub mod fw_cfg;
pub mod hypercall;
pub mod i8042;
pub mod mailbox;
pub mod pc_testdev;
pub mod pm_timer;
pub mod post;
pub mod power;
pub mod pvpanic;
pub mod reset;
pub mod serial;
#[cfg(test)]
mod testing;

pub use cmos::Cmos;
pub use console::Console;
pub use debug_exit::DebugExit;
pub use debugcon::DebugConsole;
pub use fw_cfg::FwCfg;
pub use hypercall::{HypercallPorts, Hypercalls};
pub use mailbox::{Mailbox, ReadyLine};
pub use pc_testdev::{FlushPage, IrqLevels, Scratch};
pub use pm_timer::PmTimer;
pub use post::Post;
pub use power::{PowerControl, ShutdownPort};
pub use pvpanic::PvPanic;
pub use reset::{ResetControl, SystemControlA};
pub use serial::{Serial, SerialInput};

/// The number that a guest wrote: the low 32 bits of `data`, little-endian.
fn low_u32(data: &[u8]) -> u32 {
    data.iter().take(4).rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}
