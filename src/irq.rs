//! Interrupt lines as devices see them: data and a trait, no ioctl.
//!
//! A device rings an [`IrqLine`]; `machine` decides what is at its other end (an input,
//! or nothing when the machine has no interrupt controller).

use serde::{Deserialize, Serialize};

/// A global system interrupt: the number of an input of the interrupt controllers, as
/// KVM's routing table and the ACPI MADT count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gsi(pub u32);

/// Which interrupt controllers KVM emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Irqchip {
    /// None: HLT comes back to user space. Costs nothing.
    None,
    /// A local APIC for each vCPU.
    Split,
    /// Local APICs, I/O APIC, two PICs and the PIT. On some hosts the VM's end takes 12 to
    /// 15 ms longer (it waits for readers of the in-kernel I/O bus).
    Full,
}

/// A device's interrupt output.
pub trait IrqLine: Send + Sync {
    /// Raises one edge-triggered interrupt.
    fn trigger(&self);
}

/// The inputs of the interrupt controllers, for a device that drives any of them.
pub trait IrqInputs: Send + Sync {
    /// Drives input `gsi` high or low.
    fn set_level(&self, gsi: Gsi, high: bool);
}

/// A line with nothing at its other end.
#[derive(Clone, Copy, Debug, Default)]
pub struct NotConnected;

impl IrqLine for NotConnected {
    fn trigger(&self) {}
}

impl IrqInputs for NotConnected {
    fn set_level(&self, _gsi: Gsi, _high: bool) {}
}
