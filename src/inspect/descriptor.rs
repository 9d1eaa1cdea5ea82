//! Descriptors of the guest's GDT and LDT (Intel SDM Vol. 3A 3.4.5, 8.2).

use super::walk::{Access, AddressSpace, PageFault};
use crate::x86::CpuState;

/// A descriptor's first eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor(pub(super) u64);

impl Descriptor {
    /// The type field.
    pub(super) fn kind(self) -> u8 {
        (self.0 >> 40 & 0xF) as u8
    }

    /// S: code or data.
    pub(super) fn is_segment(self) -> bool {
        self.0 >> 44 & 1 != 0
    }

    pub(super) fn is_code(self) -> bool {
        self.is_segment() && self.kind() & 8 != 0
    }

    pub(super) fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }

    pub(super) fn is_writable_data(self) -> bool {
        self.is_segment() && self.kind() & 0b1010 == 0b0010
    }

    pub(super) fn is_readable(self) -> bool {
        self.is_segment() && self.kind() & 0b1010 != 0b1000
    }

    pub(super) fn dpl(self) -> u8 {
        (self.0 >> 45 & 3) as u8
    }

    pub(super) fn present(self) -> bool {
        self.0 >> 47 & 1 != 0
    }

    pub(super) fn long(self) -> bool {
        self.0 >> 53 & 1 != 0
    }

    pub(super) fn default_32(self) -> bool {
        self.0 >> 54 & 1 != 0
    }

    pub(super) fn base(self) -> u64 {
        self.0 >> 16 & 0xFF_FFFF | self.0 >> 56 << 24
    }

    /// The last valid offset.
    pub(super) fn limit(self) -> u64 {
        let limit = self.0 & 0xFFFF | (self.0 >> 48 & 0xF) << 16;
        if self.0 >> 55 & 1 != 0 { limit << 12 | 0xFFF } else { limit }
    }

    /// What it is that is no stack's segment, in words.
    pub(super) fn no_stack_words(self) -> &'static str {
        let is_data = self.is_segment() && !self.is_code();
        if is_data { "a data segment that cannot be written" } else { self.words() }
    }

    /// What it is, in words.
    pub(super) fn words(self) -> &'static str {
        match (self.is_segment(), self.kind()) {
            (true, kind) if kind & 8 == 0 => "a data segment",
            (true, _) if self.long() => "a 64-bit code segment",
            (true, _) => "a code segment",
            (false, 1 | 9) => "a TSS",
            (false, 3 | 11) => "a busy TSS",
            (false, 2) => "an LDT",
            (false, 4 | 12) => "a call gate",
            (false, 5) => "a task gate",
            (false, 6 | 14) => "an interrupt gate",
            (false, 7 | 15) => "a trap gate",
            _ => "of a reserved type",
        }
    }
}

/// Why a selector leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// It is null.
    Null,
    /// It lies beyond its table's limit.
    Beyond(String),
    /// The table cannot be read there.
    Fault(PageFault),
}

/// The descriptor that `selector` chooses.
pub(super) fn lookup(
    space: &AddressSpace<'_>,
    cpu: &CpuState,
    selector: u16,
) -> Result<Descriptor, Missing> {
    read(space, address(cpu, selector)?).map(Descriptor).map_err(Missing::Fault)
}

/// Its linear address.
pub(super) fn address(cpu: &CpuState, selector: u16) -> Result<u64, Missing> {
    if selector & !3 == 0 {
        return Err(Missing::Null);
    }
    let local = selector & 4 != 0;
    let (name, base, limit) = match local {
        true if !cpu.ldt.present => ("LDT", 0, None),
        true => ("LDT", cpu.ldt.base, Some(cpu.ldt.limit)),
        false => ("GDT", cpu.gdt.base, Some(u32::from(cpu.gdt.limit))),
    };
    let offset = u32::from(selector & !7);
    match limit {
        Some(limit) if offset + 7 <= limit => {}
        Some(limit) => {
            let words = format!("selector {selector:#x} lies beyond the {name}'s limit {limit:#x}");
            return Err(Missing::Beyond(words));
        }
        None => {
            return Err(Missing::Beyond(format!(
                "selector {selector:#x} is in the LDT, and there is none"
            )));
        }
    }
    Ok(base.wrapping_add(offset.into()))
}

/// Eight bytes of a table of the processor's, read as it reads them.
pub(super) fn read(space: &AddressSpace<'_>, linear: u64) -> Result<u64, PageFault> {
    for byte in [linear, linear.wrapping_add(7)] {
        space.translate(byte, Access::Read, false)?;
    }
    // Where no memory is, a read gives all ones.
    Ok(space.peek_number(linear, 8).unwrap_or(u64::MAX))
}
