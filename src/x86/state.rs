//! The state of a vCPU that stands still, as KVM gives it back: what debuggers and autopsies
//! read, and a debugger writes.

use serde::Serialize;

use super::{
    CpuInit, Cr0, Cr4, DescriptorTable, Efer, Mode, PagingFeatures, Regs, Rflags, Segment,
};

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
    /// No register, but what a walk of its page tables has to know.
    #[serde(skip)]
    pub paging_features: PagingFeatures,
}

impl From<&CpuInit> for CpuState {
    /// A vCPU before its first instruction.
    fn from(init: &CpuInit) -> Self {
        let CpuInit { mode: _, regs, rflags, cs, data, ss, tr, ldt, gdt, idt, cr0, cr3, cr4, efer } =
            *init;
        let (ds, es, fs, gs) = (data, data, data, data);
        let (cr2, cr8, apic_base) = (0, 0, 0);
        Self {
            regs,
            rflags,
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            tr,
            ldt,
            gdt,
            idt,
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            efer,
            apic_base,
            paging_features: PagingFeatures::ALL,
        }
    }
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

/// x87 and SSE state, as FXSAVE has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fpu {
    /// The eight x87 registers, of which ten bytes each count.
    pub st: [[u8; 16]; 8],
    /// Control word.
    pub control: u16,
    /// Status word.
    pub status: u16,
    /// Bit n: physical register n is in use.
    pub in_use: u8,
    /// Last opcode.
    pub opcode: u16,
    /// Where the last instruction was.
    pub ip: u64,
    /// Where its operand was.
    pub dp: u64,
    /// XMM0 to XMM15.
    pub xmm: [[u8; 16]; 16],
    /// SSE control and status.
    pub mxcsr: u32,
}

/// All that a debugger shows of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Registers {
    /// All but the next two.
    pub state: CpuState,
    /// Floating point.
    pub fpu: Fpu,
    /// What SWAPGS gives: MSR 0xC0000102.
    pub kernel_gs_base: u64,
}

impl From<&CpuInit> for Registers {
    fn from(init: &CpuInit) -> Self {
        Self { state: init.into(), fpu: Fpu::default(), kernel_gs_base: 0 }
    }
}
