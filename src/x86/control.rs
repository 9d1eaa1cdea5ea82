//! Control registers, EFER and RFLAGS as named bits (Intel SDM Vol. 3A 2.5, 2.2.1; Vol. 1 3.4.3).

use bitflags::bitflags;

/// Writes the flags as hexadecimal with their names; as data, both apart.
macro_rules! named_flags {
    ($($type:ty)*) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeStruct;
                let names: Vec<_> = self.iter_names().map(|(name, _)| name).collect();
                let mut both = serializer.serialize_struct("Flags", 2)?;
                both.serialize_field("value", &self.bits())?;
                both.serialize_field("names", &names)?;
                both.end()
            }
        }
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:#x}", self.bits())?;
                let names: Vec<_> = self.iter_names().map(|(name, _)| name).collect();
                if names.is_empty() { Ok(()) } else { write!(f, " {}", names.join(" ")) }
            }
        }
    )*};
}

bitflags! {
    /// Control register 0.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr0: u64 {
        /// Protected mode.
        const PE = 1 << 0;
        /// Monitor coprocessor.
        const MP = 1 << 1;
        /// No x87: its instructions raise #NM.
        const EM = 1 << 2;
        /// Task switched.
        const TS = 1 << 3;
        /// Extension type; always 1.
        const ET = 1 << 4;
        /// x87 errors raise #MF.
        const NE = 1 << 5;
        /// Supervisor writes respect read-only pages.
        const WP = 1 << 16;
        /// Alignment checks in ring 3 where RFLAGS.AC asks for them.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// No caching.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
        const _ = !0;
    }

    /// Control register 4.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr4: u64 {
        /// An interrupt flag of its own for virtual-8086 mode.
        const VME = 1 << 0;
        /// The same for ring 3 of protected mode.
        const PVI = 1 << 1;
        /// 4 MiB pages without PAE.
        const PSE = 1 << 4;
        /// Physical addresses beyond 32 bits; long mode needs it.
        const PAE = 1 << 5;
        /// Global pages.
        const PGE = 1 << 7;
        /// FXSAVE, FXRSTOR and SSE.
        const OSFXSR = 1 << 9;
        /// SSE errors raise #XM.
        const OSXMMEXCPT = 1 << 10;
        /// SGDT, SIDT, SLDT, SMSW and STR raise #GP outside ring 0.
        const UMIP = 1 << 11;
        /// Five levels of page tables in long mode.
        const LA57 = 1 << 12;
        /// FS and GS base by instruction.
        const FSGSBASE = 1 << 16;
        /// Process-context identifiers: CR3's low bits are one.
        const PCIDE = 1 << 17;
        /// XSAVE, and with it AVX.
        const OSXSAVE = 1 << 18;
        /// Ring 0 must not execute user pages.
        const SMEP = 1 << 20;
        /// Ring 0 must not touch user pages unless RFLAGS.AC is set.
        const SMAP = 1 << 21;
        const _ = !0;
    }

    /// The extended feature register, MSR 0xC0000080.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Efer: u64 {
        /// SYSCALL and SYSRET.
        const SCE = 1 << 0;
        /// Long mode enabled.
        const LME = 1 << 8;
        /// Long mode active.
        const LMA = 1 << 10;
        /// No-execute pages.
        const NXE = 1 << 11;
        const _ = !0;
    }

    /// The flags register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Rflags: u64 {
        /// Carry.
        const CF = 1 << 0;
        /// Bit 1 is always 1.
        const ONE = 1 << 1;
        /// Parity.
        const PF = 1 << 2;
        /// Auxiliary carry.
        const AF = 1 << 4;
        /// Zero.
        const ZF = 1 << 6;
        /// Sign.
        const SF = 1 << 7;
        /// Single step.
        const TF = 1 << 8;
        /// Interrupts enabled.
        const IF = 1 << 9;
        /// Direction: string operations count down.
        const DF = 1 << 10;
        /// Overflow.
        const OF = 1 << 11;
        /// Nested task.
        const NT = 1 << 14;
        /// Resume: no breakpoint on the next instruction.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment checks; with SMAP, access to user pages.
        const AC = 1 << 18;
        /// CPUID is there.
        const ID = 1 << 21;
        const _ = !0;
    }
}

impl Rflags {
    /// The I/O privilege level: the least privileged ring that may use any port.
    pub fn iopl(self) -> u8 {
        (self.bits() >> 12 & 3) as u8
    }
}

named_flags!(Cr0 Cr4 Efer Rflags);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_their_names() {
        assert_eq!((Cr0::PE | Cr0::PG).to_string(), "0x80000001 PE PG");
        assert_eq!(Rflags::ONE.to_string(), "0x2 ONE");
        assert_eq!(Cr4::empty().to_string(), "0x0");
    }
}
