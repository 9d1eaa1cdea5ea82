//! Saved state: what a checkpoint keeps of vCPUs, interrupt controllers and devices, in types
//! of its own, apart from the running ones.
//!
//! Called by whoever saves and restores itself (`devices`, `kvm`) and by `machine`, which puts
//! it together; knows none of them. Fields are numbered (CBOR, RFC 8949): a number keeps its
//! meaning for ever, and a new field gets a new one. The running types are taken apart by
//! exhaustive patterns, so that a field which is not saved does not compile. Structures of the
//! kernel's travel as their bytes; `kvm` asserts their sizes.

mod cpu;
mod devices;

pub use cpu::{Bytes, Chips, Cpu, Msr};
pub use devices::{
    Cmos, FwCfg, HypercallPorts, I8042, I8042Next, IrqLevels, Mailbox, Post, PowerControl, PvPanic,
    ResetControl, Scratch, Serial, ShutdownPort, SystemControlA,
};

use minicbor::{Decode, Encode};

/// Saved state that is not what it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved state is malformed: {0}")]
pub struct Malformed(pub String);

/// Encodes a state.
pub fn encode<T: Encode<()>>(state: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing to memory does not fail, and no state of ours refuses to be encoded.
    let _ = minicbor::encode(state, &mut bytes);
    bytes
}

/// Decodes a state; fields of later versions are left out.
///
/// # Errors
/// The bytes are no such state.
pub fn decode<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, Malformed> {
    minicbor::decode(bytes).map_err(|e| Malformed(e.to_string()))
}

#[cfg(test)]
mod tests;
