//! The modes and rings that an instruction is tried in, and the processor state of each. Called
//! by `lab`; knows where things lie (`ground`), no KVM.

use super::ground;
use crate::x86::{CpuInit, Cr0, DescriptorTable, Rflags, Segment};

/// A mode of the processor, as far as instructions differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 16-bit real mode.
    Real,
    /// A virtual-8086 task.
    Virtual8086,
    /// 32-bit protected mode, paging off.
    Protected,
    /// 32-bit code in long mode.
    Compatibility,
    /// 64-bit code.
    Long,
}

/// A mode and a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Its name in tables and in JSON.
    pub name: &'static str,
    /// The mode.
    pub mode: Mode,
    /// The ring, which real mode has as 0 and virtual-8086 mode as 3.
    pub ring: u8,
}

const fn context(name: &'static str, mode: Mode, ring: u8) -> Context {
    Context { name, mode, ring }
}

/// All that instructions are tried in, in the order of the tables.
pub const CONTEXTS: &[Context] = &[
    context("real", Mode::Real, 0),
    context("v86", Mode::Virtual8086, 3),
    context("prot/0", Mode::Protected, 0),
    context("prot/1", Mode::Protected, 1),
    context("prot/2", Mode::Protected, 2),
    context("prot/3", Mode::Protected, 3),
    context("comp/0", Mode::Compatibility, 0),
    context("comp/3", Mode::Compatibility, 3),
    context("long/0", Mode::Long, 0),
    context("long/3", Mode::Long, 3),
];

/// 64-bit code in ring 0: a kernel's.
pub const LONG_0: Context = CONTEXTS[8];
/// 64-bit code in ring 3: a program's.
pub const LONG_3: Context = CONTEXTS[9];
/// 32-bit code in ring 3 of protected mode.
pub const PROTECTED_3: Context = CONTEXTS[5];

impl Context {
    /// Bytes of a word on its stack, which is also what its code's default operands tell:
    /// 2, 4 or 8.
    pub fn width(self) -> usize {
        match self.mode {
            Mode::Real | Mode::Virtual8086 => 2,
            Mode::Protected | Mode::Compatibility => 4,
            Mode::Long => 8,
        }
    }

    /// Is it one in which segments are paragraphs?
    pub fn is_8086(self) -> bool {
        self.width() == 2
    }

    /// Does ring 0 of it run in long mode?
    pub fn is_long(self) -> bool {
        matches!(self.mode, Mode::Compatibility | Mode::Long)
    }

    /// The selector of its code, as CS shows it.
    pub fn code(self) -> u16 {
        let ring = u16::from(self.ring);
        match self.mode {
            Mode::Real | Mode::Virtual8086 => 0,
            Mode::Protected | Mode::Compatibility => ground::CODE_32[usize::from(self.ring)] | ring,
            Mode::Long if ring == 0 => ground::CODE_64,
            Mode::Long => ground::USER_CODE_64 | 3,
        }
    }

    /// The selector of its stack, as SS shows it.
    pub fn stack(self) -> u16 {
        match self.mode {
            Mode::Real | Mode::Virtual8086 => 0,
            _ => ground::DATA[usize::from(self.ring)] | u16::from(self.ring),
        }
    }

    /// What DS, ES, FS and GS hold in it.
    pub fn data(self) -> u16 {
        if self.is_8086() { 0 } else { ground::DATA[3] | 3 }
    }

    /// Can ring 0 be entered as it is, or does it go there by an IRET?
    pub fn is_entered_by_iret(self) -> bool {
        self.ring > 0 || self.mode == Mode::Compatibility
    }

    /// CR0 of this guest. The host's differs: Linux has WP, AM and MP on.
    pub fn cr0(self) -> Cr0 {
        match self.mode {
            Mode::Real => Cr0::ET,
            Mode::Virtual8086 | Mode::Protected => Cr0::ET | Cr0::PE,
            Mode::Compatibility | Mode::Long => Cr0::ET | Cr0::PE | Cr0::PG,
        }
    }

    /// The task register of this guest.
    pub fn task(self) -> u16 {
        match self.mode {
            Mode::Real => 0,
            Mode::Virtual8086 | Mode::Protected => ground::TASK_32,
            Mode::Compatibility | Mode::Long => ground::TASK_64,
        }
    }

    /// GDTR of this guest.
    pub fn gdt(self) -> DescriptorTable {
        match self.mode {
            Mode::Real => CpuInit::real(0, 0).gdt,
            _ => DescriptorTable { base: ground::GDT, limit: ground::GDT_LIMIT },
        }
    }

    /// IDTR of this guest.
    pub fn idt(self) -> DescriptorTable {
        let limit = |size: u16| ground::GATES * size - 1;
        match self.mode {
            Mode::Real => CpuInit::real(0, 0).idt,
            _ if self.is_long() => DescriptorTable { base: ground::IDT_64, limit: limit(16) },
            _ => DescriptorTable { base: ground::IDT_32, limit: limit(8) },
        }
    }

    /// The state that a vCPU starts in when it cannot be led to the mode and ring by an IRET: there
    /// at once, at the code under test.
    pub fn cpu_there(self) -> CpuInit {
        let mut cpu = self.cpu();
        (cpu.regs.rip, cpu.regs.rsp) = (ground::PROBE, ground::STACK);
        if self.mode == Mode::Virtual8086 {
            cpu.rflags |= Rflags::VM;
            cpu.cs = Segment { dpl: 3, ..Segment::real(0) };
            (cpu.data, cpu.ss) = (cpu.cs, cpu.cs);
            return cpu;
        }
        let code = match self.mode {
            Mode::Long => Segment::code64(self.code()),
            _ => Segment::code32(self.code()),
        };
        cpu.cs = Segment { dpl: self.ring, ..code };
        cpu.ss = Segment { dpl: self.ring, ..Segment::data32(self.stack()) };
        cpu
    }

    /// The state that a vCPU starts in, at the launch code, in ring 0 of the same kind of
    /// paging: from there an IRET leads on where that is needed.
    pub fn cpu(self) -> CpuInit {
        let mut cpu = match self.mode {
            Mode::Real => CpuInit::real(0, 0),
            Mode::Virtual8086 | Mode::Protected => {
                CpuInit::protected(0, ground::CODE_32[0], ground::DATA[0])
            }
            Mode::Compatibility | Mode::Long => {
                CpuInit::long(0, ground::PAGE_TABLES, ground::CODE_64, ground::DATA[0])
            }
        };
        cpu.regs.rip = ground::LAUNCH;
        cpu.regs.rsp = ground::STACK_0;
        (cpu.regs.rdi, cpu.regs.rbx) = (ground::SCRATCH, ground::SCRATCH);
        cpu.regs.rsi = ground::SCRATCH;
        cpu.rflags = Rflags::ONE | Rflags::OF; // OF: INTO is to go through its gate
        if self.mode != Mode::Real {
            cpu.data = Segment { dpl: 3, ..Segment::data32(self.data()) };
            if self.mode == Mode::Virtual8086 {
                cpu.data = Segment { dpl: 3, ..Segment::data32(ground::DATA[3] | 3) };
            }
            (cpu.gdt, cpu.idt) = (self.gdt(), self.idt());
            cpu.cr0 = self.cr0();
            cpu.tr = Segment { base: ground::TSS, ..Segment::task(self.task()) };
            cpu.ldt = ground::ldt();
        }
        cpu
    }
}
