//! The headers of a core file (System V gABI, chapters 4 and 5).

use crate::mem::PAGE_SIZE;

/// 32-bit or 64-bit: a debugger takes the one that its other ELF file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Elf32,
    Elf64,
}

/// What a program header describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Load = 1,
    Note = 4,
}

/// A piece of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) kind: Kind,
    pub(super) linear: u64,
    pub(super) physical: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// The class of an ELF file.
pub(super) fn class_of(file: &[u8]) -> Option<Class> {
    match file.strip_prefix(b"\x7FELF")?.first()? {
        1 => Some(Class::Elf32),
        2 => Some(Class::Elf64),
        _ => None,
    }
}

impl Class {
    /// Bytes of the file's header, and of each program header.
    pub(super) fn sizes(self) -> (u64, u64) {
        match self {
            Self::Elf32 => (52, 32),
            Self::Elf64 => (64, 56),
        }
    }

    /// Has it room for such a segment's numbers? Memory above 4 GiB is beyond a 32-bit debugger.
    pub(super) fn holds(self, segment: &Segment) -> bool {
        let &Segment { linear, physical, offset, len, .. } = segment;
        let fits = |from: u64| from.saturating_add(len) <= 1 << 32;
        self == Self::Elf64 || [linear, physical, offset].into_iter().all(fits)
    }

    /// A number as wide as an address.
    pub(super) fn word(self, value: u64) -> Vec<u8> {
        match self {
            Self::Elf32 => (value as u32).to_le_bytes().to_vec(),
            Self::Elf64 => value.to_le_bytes().to_vec(),
        }
    }

    pub(super) fn header(self, program_headers: u16) -> Vec<u8> {
        const ET_CORE: u16 = 4;
        let (class, machine) = match self {
            Self::Elf32 => (1, 3_u16),  // EM_386
            Self::Elf64 => (2, 62_u16), // EM_X86_64
        };
        let (size, entry_size) = self.sizes();
        let mut bytes = vec![0x7F, b'E', b'L', b'F', class, 1, 1]; // little-endian, version 1
        bytes.resize(16, 0);
        bytes.extend(ET_CORE.to_le_bytes());
        bytes.extend(machine.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        // No entry, the program headers behind this one, no sections.
        bytes.extend([0, size, 0].into_iter().flat_map(|word| self.word(word)));
        bytes.extend(0_u32.to_le_bytes());
        for half in [size as u16, entry_size as u16, program_headers, 0, 0, 0] {
            bytes.extend(half.to_le_bytes());
        }
        bytes
    }

    pub(super) fn program_header(self, segment: &Segment) -> Vec<u8> {
        let Segment { kind, linear, physical, offset, len } = *segment;
        let (rights, align) = if kind == Kind::Load { (7_u32, PAGE_SIZE) } else { (0, 4) };
        let mut bytes = (kind as u32).to_le_bytes().to_vec();
        let words = [offset, linear, physical, len, len].map(|word| self.word(word)).concat();
        // The two classes have the rights in different places.
        match self {
            Self::Elf32 => bytes.extend([words, rights.to_le_bytes().to_vec()].concat()),
            Self::Elf64 => bytes.extend([rights.to_le_bytes().to_vec(), words].concat()),
        }
        bytes.extend(self.word(align));
        bytes
    }
}
