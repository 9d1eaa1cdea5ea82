//! The mode that code runs in, told apart as the manuals do.

use serde::Serialize;

use crate::x86::{CpuState, Cr0, Efer, Rflags};

/// A mode (Intel SDM Vol. 3A 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CodeMode {
    /// Real mode.
    Real,
    /// Virtual-8086 mode.
    Virtual8086,
    /// Protected mode.
    Protected,
    /// Compatibility mode: 16- or 32-bit code under long mode's tables.
    Compatibility,
    /// Long mode's 64-bit mode.
    Long,
}

impl CodeMode {
    pub(super) fn of(cpu: &CpuState) -> Self {
        match () {
            () if !cpu.cr0.contains(Cr0::PE) => Self::Real,
            () if cpu.efer.contains(Efer::LMA) && cpu.cs.long => Self::Long,
            () if cpu.efer.contains(Efer::LMA) => Self::Compatibility,
            () if cpu.rflags.contains(Rflags::VM) => Self::Virtual8086,
            () => Self::Protected,
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Real => "real mode",
            Self::Virtual8086 => "virtual-8086 mode",
            Self::Protected => "protected mode",
            Self::Compatibility => "compatibility mode",
            Self::Long => "long mode",
        }
    }
}
