//! Images into guest memory: each boot protocol, and the state it promises its image.
//!
//! Called by `machine` with the image's bytes; knows guest memory and processor facts, no
//! KVM and no device.
//!
//! One file a protocol, whose head describes the state it enters its image in; one row a
//! protocol in `PROBES`, in the order in which they are asked. A new protocol is a file
//! and a row (and a name in [`Protocol`]).
//!
//! Images are not trusted: a lying one is an [`Error`] that says what is wrong, and nothing
//! here allocates or loops more than the image's own size allows.

pub mod acpi;
mod bios;
mod bytes;
mod bzimage;
mod elf;
mod elf_file;
mod entry;
mod error;
mod extras;
mod flat;
mod multiboot;
mod multiboot2;
mod multiboot2_info;
mod place;
mod pvh;
mod start_info;
mod vmlinux;
mod zero_page;

pub use error::Error;

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

impl Protocol {
    /// The name that `--boot` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Elf => "elf",
            Self::Multiboot => "multiboot",
            Self::Multiboot2 => "multiboot2",
            Self::Pvh => "pvh",
            Self::Linux => "linux",
        }
    }
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
    /// Its name, which multiboot puts before the command line.
    pub image_name: &'a str,
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
    /// What the ACPI tables describe; there are none where `None`.
    pub hardware: Option<acpi::Hardware>,
    /// What lies where.
    pub map: &'a MemoryMap,
    /// Where it goes.
    pub memory: &'a GuestMemory,
}

impl<'a> Request<'a> {
    /// Asks for `image` and nothing else.
    pub fn new(image: &'a [u8], map: &'a MemoryMap, memory: &'a GuestMemory) -> Self {
        Self {
            image,
            image_name: "",
            protocol: None,
            entry: None,
            load_address: None,
            cmdline: "",
            modules: &[],
            initrd: None,
            hardware: None,
            map,
            memory,
        }
    }
}

/// Something that was put into guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placed {
    /// What it is: "image segment", "page tables", "command line", ...
    pub what: String,
    /// Where.
    pub range: Range,
    /// Is it part of the image that the image says is not written?
    pub read_only: bool,
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

/// What an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The protocol it asks for.
    pub protocol: Protocol,
    /// The same in words: "multiboot 1, ELF32".
    pub description: String,
}

/// One row of the table of protocols.
struct Probe {
    protocol: Protocol,
    /// What the image is, in words, if it is one of these.
    probe: fn(&[u8]) -> Option<String>,
    /// Loads it; `Loaded::description` starts as the probe's words.
    load: fn(&Request<'_>) -> Result<Loaded, Error>,
}

/// In this order: a bzImage may hold any bytes, a kernel may carry several headers and
/// the richer protocol wins, plain ELF is what is left, and 55 AA at the end of a sector
/// is the weakest sign.
const PROBES: &[Probe] = &[
    Probe { protocol: Protocol::Linux, probe: bzimage::probe, load: bzimage::load },
    Probe { protocol: Protocol::Multiboot2, probe: multiboot2::probe, load: multiboot2::load },
    Probe { protocol: Protocol::Multiboot, probe: multiboot::probe, load: multiboot::load },
    Probe { protocol: Protocol::Linux, probe: vmlinux::probe, load: vmlinux::load },
    Probe { protocol: Protocol::Pvh, probe: pvh::probe, load: pvh::load },
    Probe { protocol: Protocol::Elf, probe: elf::probe, load: elf::load },
    Probe { protocol: Protocol::Flat, probe: flat::probe, load: flat::load },
];

/// Is it a dynamic program of a system's, as build scripts are, by the headers in its first bytes?
/// Of a directory's files these are no guests; one that is named is looked at all the same.
pub fn is_host_program(head: &[u8]) -> bool {
    elf_file::has_interpreter(head)
}

/// Finds out what an image is.
pub fn probe(image: &[u8]) -> Result<Found, Error> {
    match find(image) {
        Some((row, description)) => Ok(Found { protocol: row.protocol, description }),
        None => Err(Error::NotUnderstood { looks_like: looks_like(image) }),
    }
}

/// The protocol that [`load`] would load the image by.
pub fn protocol(request: &Request<'_>) -> Result<Protocol, Error> {
    choose(request).map(|row| row.protocol)
}

/// Loads an image and all that goes with it into guest memory, which is fresh.
pub fn load(request: &Request<'_>) -> Result<Loaded, Error> {
    check_texts(request)?;
    (choose(request)?.load)(request)
}

fn find(image: &[u8]) -> Option<(&'static Probe, String)> {
    PROBES.iter().find_map(|row| Some((row, (row.probe)(image)?)))
}

/// The row that loads what is asked for.
fn choose(request: &Request<'_>) -> Result<&'static Probe, Error> {
    let is_flat = request.entry.is_some() && !request.image.is_empty();
    let (row, what) = match (request.protocol, find(request.image)) {
        // A protocol's first row says what is wrong with an image that none of them knows.
        (Some(protocol), found) => match found.filter(|(row, _)| row.protocol == protocol) {
            Some((row, _)) => (row, protocol.name().to_owned()),
            None => (row_of(protocol)?, protocol.name().to_owned()),
        },
        (None, Some(found)) => found,
        (None, None) if is_flat => (row_of(Protocol::Flat)?, String::new()),
        (None, None) => {
            return Err(Error::NotUnderstood { looks_like: looks_like(request.image) });
        }
    };
    flat_options_only_for_flat(request, row, &what)?;
    Ok(row)
}

fn row_of(protocol: Protocol) -> Result<&'static Probe, Error> {
    let row = PROBES.iter().find(|row| row.protocol == protocol);
    row.ok_or_else(|| Error::usage(format!("no way to load an image as {}", protocol.name())))
}

/// `--entry` and `--load-address` would be ignored by every other protocol, silently.
fn flat_options_only_for_flat(request: &Request<'_>, row: &Probe, what: &str) -> Result<(), Error> {
    let given = request.entry.is_some() || request.load_address.is_some();
    if row.protocol == Protocol::Flat || !given {
        return Ok(());
    }
    Err(Error::usage(format!(
        "--entry and --load-address are for flat binaries, and the image is another thing ({what}): leave them out, or add --boot flat"
    )))
}

/// All that reaches the guest as a string ends in a NUL there.
fn check_texts(request: &Request<'_>) -> Result<(), Error> {
    let own = [("command line", request.cmdline), ("image's name", request.image_name)];
    let modules = request.modules.iter().map(|module| ("module's arguments", module.cmdline));
    match own.into_iter().chain(modules).find(|(_, text)| text.contains('\0')) {
        Some((what, text)) => Err(Error::usage(format!(
            "the {what} {text:?} holds a NUL, where the guest would see its end: take it out"
        ))),
        None => Ok(()),
    }
}

/// What can be said of an image that no protocol knows.
fn looks_like(image: &[u8]) -> String {
    const WELL_KNOWN: &[(&[u8], &str)] = &[
        (b"\x7FELF", "an ELF file for another processor, or a damaged one"),
        (b"MZ", "a DOS or UEFI program"),
        (b"\x1F\x8B", "compressed with gzip: unpack it first"),
        (b"\x28\xB5\x2F\xFD", "compressed with zstd: unpack it first"),
        (b"\xFD7zXZ", "compressed with xz: unpack it first"),
        (b"QFI\xFB", "a qcow2 disk image"),
        (b"#!", "a script"),
    ];
    let head = &image[..image.len().min(4)];
    match WELL_KNOWN.iter().find(|(magic, _)| image.starts_with(magic)) {
        _ if image.is_empty() => "it is empty".to_owned(),
        Some((_, what)) => (*what).to_owned(),
        None => format!("{} bytes, the first are {head:02x?}", image.len()),
    }
}
