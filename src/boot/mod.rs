//! Images into guest memory: each boot protocol, and the state it promises its image.
//!
//! Called by `machine` with the image's bytes; knows guest memory and processor facts, no
//! KVM and no device.

use serde::Serialize;

use crate::mem::{GuestMemory, MemoryMap, Range};
use crate::x86::{CpuInit, Mode};

/// A boot protocol, by the name that `--boot` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// A flat binary.
    Flat,
    /// ELF without a boot protocol's notes.
    Elf,
    /// Multiboot 1.
    Multiboot,
    /// Multiboot 2.
    Multiboot2,
    /// PVH.
    Pvh,
    /// Linux.
    Linux,
}

/// A file that is handed to the guest beside the image.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// Its bytes.
    pub data: &'a [u8],
    /// The string that goes with it: its name, then its arguments.
    pub cmdline: &'a str,
}

/// What is to be loaded, and how.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The image file's bytes.
    pub image: &'a [u8],
    /// The protocol asked for; found out from the image where `None`.
    pub protocol: Option<Protocol>,
    /// Mode in which a flat binary is entered.
    pub entry: Option<Mode>,
    /// Where a flat binary goes.
    pub load_address: Option<u64>,
    /// The command line, without a NUL.
    pub cmdline: &'a str,
    /// Modules.
    pub modules: &'a [Module<'a>],
    /// Initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// What lies where.
    pub map: &'a MemoryMap,
    /// Where it goes.
    pub memory: &'a GuestMemory,
}

/// Something that was put into guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placed {
    /// What it is: "image segment", "page tables", "command line", ...
    pub what: String,
    /// Where.
    pub range: Range,
}

/// An image in guest memory, ready to be entered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loaded {
    /// The protocol it was loaded by.
    pub protocol: Protocol,
    /// What was found out, in a few words: "bzImage, protocol 2.15, 64-bit entry".
    pub description: String,
    /// The first vCPU's state.
    pub cpu: CpuInit,
    /// All that was placed, in ascending order.
    pub placed: Vec<Placed>,
}
