//! Loads any bytes by any protocol: `cargo +nightly fuzz run load`. To start from good
//! images, first `cargo run --bin seeds` in this crate's directory.
//!
//! The input's first byte chooses protocol and entry mode, the rest is the image.

#![no_main]

#[path = "../../tests/images/mod.rs"]
mod images;

use libfuzzer_sys::{Corpus, fuzz_target};
use ringfence::boot::{self, Module, Protocol, Request};
use ringfence::mem::{self, MemoryMap};
use ringfence::x86::Mode;

const RAM: u64 = 16 << 20;
const PROTOCOLS: [Option<Protocol>; 8] = [
    None,
    None,
    Some(Protocol::Flat),
    Some(Protocol::Elf),
    Some(Protocol::Multiboot),
    Some(Protocol::Multiboot2),
    Some(Protocol::Pvh),
    Some(Protocol::Linux),
];
const MODES: [Option<Mode>; 4] = [None, Some(Mode::Real), Some(Mode::Protected), Some(Mode::Long)];

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((&choice, image)) = input.split_first() else { return Corpus::Reject };
    let (map, memory) = (MemoryMap::new(RAM), mem::create(RAM).unwrap());
    let choice = usize::from(choice);
    let request = Request {
        protocol: PROTOCOLS[choice % 8],
        entry: MODES[choice / 8 % 4],
        cmdline: "console=ttyS0",
        image_name: "image",
        modules: if choice & 0x80 != 0 {
            &[Module { data: &[1; 5000], cmdline: "one a" }]
        } else {
            &[]
        },
        initrd: if choice & 0x40 != 0 { Some(&[2; 3]) } else { None },
        ..Request::new(image, &map, &memory)
    };
    if let Ok(loaded) = boot::load(&request) {
        images::check_loaded(&loaded, &map);
    }
    Corpus::Keep
});
