//! Segment registers with their hidden parts, and the descriptors that match them.

use serde::Serialize;

/// A segment register as the processor holds it (Intel SDM Vol. 3A 3.4.3, 3.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Linear address of offset 0.
    pub base: u64,
    /// Last valid offset, in bytes.
    pub limit: u32,
    /// The descriptor's type field, 4 bits (Tables 3-1 and 3-2).
    pub kind: u8,
    /// Descriptor privilege level.
    pub dpl: u8,
    /// S: a code or data segment (clear: a system segment).
    pub code_or_data: bool,
    /// P: present.
    pub present: bool,
    /// D/B: 32-bit.
    pub default_32: bool,
    /// L: 64-bit code.
    pub long: bool,
}

/// Type: data, writable, accessed.
const DATA: u8 = 0x3;
/// Type: code, readable, accessed.
const CODE: u8 = 0xB;
/// Type: 32-bit or 64-bit TSS, busy.
const TSS_BUSY: u8 = 0xB;
/// Type: LDT.
const LDT: u8 = 0x2;

impl Segment {
    /// Real mode: the base is the selector times 16, the limit 64 KiB.
    pub const fn real(selector: u16) -> Self {
        Self {
            selector,
            base: (selector as u64) << 4,
            limit: 0xFFFF,
            kind: DATA,
            dpl: 0,
            code_or_data: true,
            present: true,
            default_32: false,
            long: false,
        }
    }

    /// A real-mode code segment. Code is the one register whose type must say so: VT-x
    /// without unrestricted guest checks it (Intel SDM Vol. 3C 27.3.1.2).
    pub const fn real_code(selector: u16) -> Self {
        Self { kind: CODE, ..Self::real(selector) }
    }

    /// Flat 32-bit data: base 0, 4 GiB.
    pub const fn data32(selector: u16) -> Self {
        Self { base: 0, limit: u32::MAX, default_32: true, ..Self::real(selector) }
    }

    /// Flat 32-bit code: base 0, 4 GiB.
    pub const fn code32(selector: u16) -> Self {
        Self { kind: CODE, ..Self::data32(selector) }
    }

    /// 64-bit code.
    pub const fn code64(selector: u16) -> Self {
        Self { default_32: false, long: true, ..Self::code32(selector) }
    }

    /// The task register at reset: VT-x refuses to enter a guest whose TR is unusable.
    pub const fn task(selector: u16) -> Self {
        Self {
            kind: TSS_BUSY,
            limit: 0x67, // the smallest 32-bit or 64-bit TSS (Intel SDM Vol. 3A 8.2.1)
            base: 0,
            code_or_data: false,
            default_32: false,
            ..Self::real(selector)
        }
    }

    /// The local descriptor table register at reset: none.
    pub const fn no_ldt() -> Self {
        Self {
            selector: 0,
            kind: LDT,
            base: 0,
            code_or_data: false,
            present: false,
            ..Self::real(0)
        }
    }

    /// Is the limit counted in pages?
    pub const fn granularity(&self) -> bool {
        self.limit > 0xF_FFFF
    }

    /// The descriptor that loads this segment (Intel SDM Vol. 3A, figure 3-8); a base above
    /// 32 bits does not fit into the eight bytes, and no segment here has one.
    pub const fn descriptor(&self) -> u64 {
        let granular = self.granularity();
        let limit = if granular { self.limit >> 12 } else { self.limit } as u64;
        let access = self.kind as u64
            | (self.code_or_data as u64) << 4
            | (self.dpl as u64) << 5
            | (self.present as u64) << 7;
        let flags =
            (self.long as u64) << 1 | (self.default_32 as u64) << 2 | (granular as u64) << 3;
        (limit & 0xFFFF)
            | (self.base & 0xFF_FFFF) << 16
            | access << 40
            | (limit >> 16) << 48
            | flags << 52
            | (self.base >> 24 & 0xFF) << 56
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_well_known_values() {
        assert_eq!(Segment::code32(8).descriptor(), 0x00CF_9B00_0000_FFFF);
        assert_eq!(Segment::data32(16).descriptor(), 0x00CF_9300_0000_FFFF);
        assert_eq!(Segment::code64(8).descriptor(), 0x00AF_9B00_0000_FFFF);
        assert_eq!(Segment::task(24).descriptor(), 0x0000_8B00_0000_0067);
    }

    #[test]
    fn real_mode_base_is_sixteen_selectors() {
        assert_eq!(Segment::real_code(0x7C0).base, 0x7C00);
        assert_eq!(Segment::real(0xFFFF).base, 0xF_FFF0);
    }
}
