//! The state a vCPU starts in: what each boot protocol promises its image.

use serde::{Deserialize, Serialize};

use super::segment::Segment;
use super::{Cr0, Cr4, Efer, Rflags};

/// What the processor runs at entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// 16-bit real mode.
    Real,
    /// 32-bit protected mode, paging off.
    Protected,
    /// 64-bit long mode.
    Long,
}

/// General registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // the registers' own names
pub struct Regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Last valid byte.
    pub limit: u16,
}

/// The whole state of the first vCPU at its first instruction. Interrupts are off, the
/// direction flag is clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CpuInit {
    /// What the other fields add up to.
    pub mode: Mode,
    /// General registers.
    pub regs: Regs,
    /// The flags register.
    pub rflags: Rflags,
    /// Code segment.
    pub cs: Segment,
    /// DS, ES, FS and GS.
    pub data: Segment,
    /// Stack segment.
    pub ss: Segment,
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table register.
    pub ldt: Segment,
    /// GDTR.
    pub gdt: DescriptorTable,
    /// IDTR.
    pub idt: DescriptorTable,
    /// Control register 0.
    pub cr0: Cr0,
    /// Physical address of the top page table.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: Cr4,
    /// Extended feature register.
    pub efer: Efer,
}

impl CpuInit {
    /// Real mode at `cs:ip`, every data segment 0, the interrupt vector table at 0.
    pub fn real(cs: u16, ip: u16) -> Self {
        Self {
            mode: Mode::Real,
            regs: Regs { rip: u64::from(ip), ..Regs::default() },
            rflags: Rflags::ONE,
            cs: Segment::real_code(cs),
            data: Segment::real(0),
            ss: Segment::real(0),
            tr: Segment::task(0),
            ldt: Segment::no_ldt(),
            gdt: DescriptorTable { base: 0, limit: 0xFFFF },
            idt: DescriptorTable { base: 0, limit: 0x3FF },
            cr0: Cr0::ET,
            cr3: 0,
            cr4: Cr4::empty(),
            efer: Efer::empty(),
        }
    }

    /// Flat 32-bit protected mode at `entry`, paging off. `code` and `data` are the selectors
    /// that the segments show; no descriptor table is promised until `gdt` is set.
    pub fn protected(entry: u32, code: u16, data: u16) -> Self {
        Self {
            mode: Mode::Protected,
            regs: Regs { rip: u64::from(entry), ..Regs::default() },
            cs: Segment::code32(code),
            data: Segment::data32(data),
            ss: Segment::data32(data),
            gdt: DescriptorTable::default(),
            idt: DescriptorTable::default(),
            cr0: Cr0::ET | Cr0::PE,
            ..Self::real(0, 0)
        }
    }

    /// 64-bit mode at `entry` with the page tables at `cr3`. No-execute and write protection
    /// are left off, as PVH and Linux leave them: the image turns on what it wants.
    pub fn long(entry: u64, cr3: u64, code: u16, data: u16) -> Self {
        let protected = Self::protected(0, code, data);
        Self {
            mode: Mode::Long,
            regs: Regs { rip: entry, ..Regs::default() },
            cs: Segment::code64(code),
            cr0: protected.cr0 | Cr0::PG,
            cr3,
            cr4: Cr4::PAE,
            efer: Efer::LME | Efer::LMA,
            ..protected
        }
    }
}
