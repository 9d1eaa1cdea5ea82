//! The state of a vCPU that stands still, as KVM gives it back: what debuggers and autopsies
//! read, and a debugger writes.

use serde::Serialize;

use super::{Cr0, Cr4, DescriptorTable, Efer, Mode, Regs, Rflags, Segment};

/// All but the floating-point state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // the registers' own names
pub struct CpuState {
    pub regs: Regs,
    pub rflags: Rflags,
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: Cr0,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: Cr4,
    pub cr8: u64,
    pub efer: Efer,
    pub apic_base: u64,
}

impl CpuState {
    /// The mode that its code runs in; compatibility and virtual-8086 mode count as what
    /// their code looks like, protected and real.
    pub fn mode(&self) -> Mode {
        if !self.cr0.contains(Cr0::PE) || self.rflags.contains(Rflags::VM) {
            Mode::Real
        } else if self.efer.contains(Efer::LMA) && self.cs.long {
            Mode::Long
        } else {
            Mode::Protected
        }
    }

    /// Bits of the code at RIP: 16, 32 or 64.
    pub fn code_bits(&self) -> u32 {
        match self.mode() {
            Mode::Long => 64,
            Mode::Protected if self.cs.default_32 => 32,
            _ => 16,
        }
    }

    /// The linear address of the next instruction.
    pub fn linear_rip(&self) -> u64 {
        match self.mode() {
            Mode::Long => self.regs.rip,
            _ => self.cs.base.wrapping_add(self.regs.rip) & 0xFFFF_FFFF,
        }
    }

    /// The linear address of the top of the stack.
    pub fn linear_rsp(&self) -> u64 {
        match self.mode() {
            Mode::Long => self.regs.rsp,
            _ if self.ss.default_32 => self.ss.base.wrapping_add(self.regs.rsp) & 0xFFFF_FFFF,
            _ => self.ss.base.wrapping_add(self.regs.rsp & 0xFFFF) & 0xFFFF_FFFF,
        }
    }

    /// The privilege level.
    pub fn ring(&self) -> u8 {
        if self.cr0.contains(Cr0::PE) { self.ss.dpl } else { 0 }
    }
}
