//! Where the names of the guest's functions come from: its image, and the files of --symbols.
//!
//! Called by [`super::Machine`] when somebody wants names: they take time at a start.

use super::files;
use crate::boot::{Loaded, Protocol};
use crate::config::Config;
use crate::inspect::{Functions, offset_of_image};

/// How much higher than its own addresses the image lies.
pub(super) fn image_offset(image: &[u8], loaded: &Loaded) -> u64 {
    match loaded.protocol {
        // The only protocol whose entry is the ELF header's.
        Protocol::Elf => offset_of_image(image, loaded.cpu.regs.rip),
        _ => 0,
    }
}

/// The guest's functions.
pub(super) fn functions(config: &Config, image: &[u8], loaded: &Loaded) -> Functions {
    let mut functions = Functions::default();
    functions.add(image, image_offset(image, loaded));
    let (files, complaints) = symbol_files(config);
    complaints.iter().for_each(|complaint| log::warn!("{complaint}"));
    files.iter().for_each(|(bytes, offset)| _ = functions.add(bytes, *offset));
    functions
}

/// The symbol files' bytes, each with its offset; and what is wrong with one.
pub(super) fn symbol_files(config: &Config) -> (Vec<(Vec<u8>, u64)>, Vec<String>) {
    let (mut files, mut complaints) = (Vec::new(), Vec::new());
    for file in &config.symbols {
        let path = file.path.display();
        match files::read_symbols(&file.path) {
            Ok(bytes) if Functions::default().add(&bytes, 0) => files.push((bytes, file.offset)),
            Ok(_) => complaints.push(format!("{path} is no ELF file: no symbols")),
            Err(e) => complaints.push(e.to_string()),
        }
    }
    (files, complaints)
}
