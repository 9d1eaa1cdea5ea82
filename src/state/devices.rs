//! The saved state of the platform's devices. Those without a register have none.

use minicbor::{Decode, Encode};

/// CMOS and clock. The time is the host's and is not saved.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)] // named after the device's fields, as everything below
pub struct Cmos {
    #[n(0)]
    pub index: u8,
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub bytes: [u8; 128],
}

/// The POST code port.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)]
pub struct Post {
    #[n(0)]
    pub code: u8,
}

/// The register at 0xCF9.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)]
pub struct ResetControl {
    #[n(0)]
    pub kept: u8,
}

/// The register at 0x92.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)]
pub struct SystemControlA {
    #[n(0)]
    pub value: u8,
}

/// pvpanic.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)]
pub struct PvPanic {
    #[n(0)]
    pub crash_loaded: bool,
}

/// Hypercalls by port.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)]
pub struct HypercallPorts {
    #[n(0)]
    pub function: u32,
    #[n(1)]
    pub argument: u32,
    #[n(2)]
    pub result: u32,
}

/// The ACPI fixed registers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)]
pub struct PowerControl {
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub registers: [u8; 8],
}

/// The port that waits for "Shutdown".
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)]
pub struct ShutdownPort {
    #[n(0)]
    pub matched: u8,
}

/// What the keyboard controller's next data byte is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)]
pub enum I8042Next {
    #[n(0)]
    Keyboard,
    #[n(1)]
    Ram(#[n(0)] u8),
    #[n(2)]
    OutputPort,
    #[n(3)]
    Echo,
    #[n(4)]
    SecondDevice,
    #[n(5)]
    Nothing,
}

/// The keyboard controller.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)]
pub struct I8042 {
    #[n(0)]
    pub status: u8,
    #[n(1)]
    pub output: u8,
    #[n(2)]
    pub next: I8042Next,
    #[n(3)]
    pub output_port: u8,
    #[n(4)]
    #[cbor(with = "minicbor::bytes")]
    pub ram: [u8; 32],
}

/// A 16550.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)]
pub struct Serial {
    #[n(0)]
    pub baud_divisor_low: u8,
    #[n(1)]
    pub baud_divisor_high: u8,
    #[n(2)]
    pub interrupt_enable: u8,
    #[n(3)]
    pub interrupt_identification: u8,
    #[n(4)]
    pub line_control: u8,
    #[n(5)]
    pub line_status: u8,
    #[n(6)]
    pub modem_control: u8,
    #[n(7)]
    pub modem_status: u8,
    #[n(8)]
    pub scratch: u8,
    /// Bytes received and not yet read.
    #[n(9)]
    #[cbor(with = "minicbor::bytes")]
    pub received: Vec<u8>,
    /// The interrupt enable register as the guest wrote it.
    #[n(10)]
    pub enabled: u8,
    /// "Transmit register empty" has not been named to the guest yet.
    #[n(11)]
    pub empty_pending: bool,
}

/// Bytes that read back what was written; those behind the last that is not zero are left out.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)]
pub struct Scratch {
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

/// The lines of pc-testdev.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)]
pub struct IrqLevels {
    #[n(0)]
    pub high: u32,
}

/// The firmware configuration device.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)]
pub struct FwCfg {
    #[n(0)]
    pub selected: u16,
    #[n(1)]
    pub position: u8,
}

/// The mailbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)]
pub struct Mailbox {
    /// The names that were announced, a NUL behind each.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub names: Vec<u8>,
    /// The name that is being announced.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub partial: Vec<u8>,
    #[n(2)]
    pub ready: bool,
    /// The test to run.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub test: Vec<u8>,
    /// How many bytes of it the guest has read.
    #[n(4)]
    pub position: u32,
}
