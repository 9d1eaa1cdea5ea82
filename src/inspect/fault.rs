//! Which fault the instruction at RIP raises as the state stands: the same checks in the same
//! order as the processor makes them (Intel SDM Vol. 3A 6.15, and each instruction's page).

use iced_x86::{
    CpuidFeature, Instruction, InstructionInfoFactory, MemorySize, Mnemonic, OpAccess, Register,
    UsedMemory,
};
use serde::Serialize;

use super::disasm::{self, Code, LONGEST};
use super::operands;
use super::special;
use super::walk::{Access, AddressSpace, PageFault};
use crate::x86::{CpuState, Cr0, Cr4, Efer, Mode, Rflags};

/// An exception that an instruction raises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Its vector.
    pub vector: u8,
    /// The error code, for the vectors that have one.
    pub error_code: Option<u32>,
    /// What CR2 holds after a page fault.
    pub address: Option<u64>,
    /// What was tried at that address.
    pub access: Option<Access>,
    /// Why, in words.
    pub why: String,
    /// What raised it.
    #[serde(skip)]
    pub(super) origin: Origin,
}

/// What raises an exception or interrupt. Whatever its vector, only an exception has an error code
/// and makes a double fault (Intel SDM Vol. 3A 6.13, 6.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The processor.
    Exception,
    /// An interrupt controller.
    External,
    /// INT n, INT3 or INTO.
    Software,
}

/// #DB
pub(super) const DEBUG: u8 = 1;
/// #DE
pub(super) const DIVIDE: u8 = 0;
/// #UD
pub(super) const INVALID_OPCODE: u8 = 6;
/// Bits of an address within the smallest page.
const PAGE_SHIFT: u32 = 12;
/// #NM
pub(super) const NO_DEVICE: u8 = 7;
/// #DF
pub(super) const DOUBLE_FAULT: u8 = 8;
/// #TS
pub(super) const INVALID_TSS: u8 = 10;
/// #NP
pub(super) const NOT_PRESENT: u8 = 11;
/// #SS
pub(super) const STACK: u8 = 12;
/// #GP
pub(super) const PROTECTION: u8 = 13;
/// #PF
pub(super) const PAGE: u8 = 14;
/// #AC
pub(super) const ALIGNMENT: u8 = 17;

/// What an exception is called.
pub fn name(vector: u8) -> String {
    match vector {
        0 => "divide error",
        1 => "debug exception",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range exceeded",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection fault",
        14 => "page fault",
        16 => "x87 error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD error",
        _ => return format!("interrupt {vector:#x}"),
    }
    .to_owned()
}

impl Fault {
    pub(super) fn new(vector: u8, why: impl Into<String>) -> Self {
        let error_code = matches!(vector, 8 | 10..=14 | 17).then_some(0);
        let (address, access, origin) = (None, None, Origin::Exception);
        Self { vector, error_code, address, access, why: why.into(), origin }
    }

    pub(super) fn interrupt(vector: u8, why: &str) -> Self {
        Self { origin: Origin::External, error_code: None, ..Self::new(vector, why) }
    }

    pub(super) fn software(vector: u8, why: impl Into<String>) -> Self {
        Self { origin: Origin::Software, error_code: None, ..Self::new(vector, why) }
    }

    /// What it is called.
    pub(super) fn name(&self) -> String {
        match self.origin {
            Origin::Exception => name(self.vector),
            // INT3's and INTO's are made for nothing else.
            Origin::Software if matches!(self.vector, 3 | 4) => name(self.vector),
            Origin::Software | Origin::External => format!("interrupt {:#x}", self.vector),
        }
    }

    pub(super) fn with_code(vector: u8, code: u32, why: impl Into<String>) -> Self {
        Self { error_code: Some(code), ..Self::new(vector, why) }
    }

    /// What and why, without where: "page fault at 0x0 (write, not present)".
    pub fn words(&self) -> String {
        let name = self.name();
        match (self.address, self.access) {
            (Some(address), Some(access)) => {
                format!("{name} at {address:#x} ({}, {})", access.words(), self.why)
            }
            _ if self.why.is_empty() => name,
            _ => format!("{name} ({})", self.why),
        }
    }
}

impl From<PageFault> for Fault {
    fn from(fault: PageFault) -> Self {
        Self {
            vector: PAGE,
            error_code: Some(fault.code),
            address: Some(fault.address),
            access: Some(fault.access),
            why: fault.why,
            origin: Origin::Exception,
        }
    }
}

/// A vCPU that stands at an instruction.
pub(super) struct Standing<'m> {
    pub(super) space: AddressSpace<'m>,
    pub(super) cpu: &'m CpuState,
    pub(super) code: Code<'m>,
}

impl<'m> Standing<'m> {
    pub(super) fn new(space: AddressSpace<'m>, cpu: &'m CpuState) -> Self {
        Self { space, cpu, code: Code::new(space, cpu) }
    }

    pub(super) fn user(&self) -> bool {
        self.cpu.ring() == 3
    }

    pub(super) fn instruction(&self) -> Option<Instruction> {
        self.code.at(self.cpu.regs.rip)
    }

    /// The fault that the instruction at RIP raises; `None` where it raises none that can be
    /// told from the state.
    pub(super) fn fault(&self) -> Option<Fault> {
        let rip = self.cpu.regs.rip;
        if let Err(fault) = self.fetch(rip, 1) {
            return Some(fault);
        }
        let it = self.instruction()?;
        // An instruction that reaches into a page that is not there faults on that page.
        let cut_off = it.is_invalid() && self.code.is_cut_off(rip);
        let len = if cut_off { self.readable(rip) + 1 } else { it.len() };
        if let Err(fault) = self.fetch(rip, len.min(LONGEST) as u64) {
            return Some(fault);
        }
        if it.is_invalid() && self.code.is_too_long(rip) {
            let why = format!("an instruction of more than {LONGEST} bytes");
            return Some(Fault::new(PROTECTION, why));
        }
        if it.is_invalid() {
            let why = format!("bytes {} are no instruction", self.code.hex(rip, 4));
            return Some(Fault::new(INVALID_OPCODE, why));
        }
        self.execute(&it)
    }

    /// How many bytes from `rip` on can be read, the longest instruction at most.
    fn readable(&self, rip: u64) -> usize {
        let mut bytes = [0; LONGEST];
        self.space.peek(self.code.linear(rip), &mut bytes)
    }

    /// Fetches `len` bytes at `rip`.
    pub(super) fn fetch(&self, rip: u64, len: u64) -> Result<(), Fault> {
        for at in [rip, rip.wrapping_add(len - 1)] {
            match self.cpu.mode() {
                Mode::Long if !self.space.is_canonical(at) => {
                    let why = format!("execution at {at:#x}, which is not canonical");
                    return Err(Fault::new(PROTECTION, why));
                }
                Mode::Long => {}
                _ if at > u64::from(self.cpu.cs.limit) => {
                    let limit = self.cpu.cs.limit;
                    let why =
                        format!("execution at {at:#x}, beyond the code segment's limit {limit:#x}");
                    return Err(Fault::new(PROTECTION, why));
                }
                _ => {}
            }
            self.space.translate(self.code.linear(at), Access::Execute, self.user())?;
        }
        Ok(())
    }

    fn execute(&self, it: &Instruction) -> Option<Fault> {
        self.unavailable(it)
            .or_else(|| special::privilege(self, it))
            .or_else(|| self.memory(it))
            .or_else(|| special::fault(self, it))
    }

    /// Instructions that the control registers switch off.
    fn unavailable(&self, it: &Instruction) -> Option<Fault> {
        let (cr0, cr4) = (self.cpu.cr0, self.cpu.cr4);
        // Only where it faults: a second run asks of each of its steps.
        let words = || disasm::text(it);
        let off = |why: &str| Some(Fault::new(INVALID_OPCODE, format!("{}, and {why}", words())));
        if matches!(it.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2) {
            return Some(Fault::new(INVALID_OPCODE, words()));
        }
        if it.mnemonic() == Mnemonic::Rsm {
            return off("this is not system management mode");
        }
        let leaves =
            matches!(it.mnemonic(), Mnemonic::Syscall | Mnemonic::Sysret | Mnemonic::Sysretq);
        if leaves && !self.cpu.efer.contains(Efer::SCE) {
            return off("EFER.SCE is clear");
        }
        for feature in it.cpuid_features() {
            match feature {
                CpuidFeature::FPU
                    if it.mnemonic() != Mnemonic::Wait && cr0.intersects(Cr0::EM | Cr0::TS) =>
                {
                    let why = format!("{}, and CR0.EM or CR0.TS is set", words());
                    return Some(Fault::new(NO_DEVICE, why));
                }
                CpuidFeature::AVX
                | CpuidFeature::AVX2
                | CpuidFeature::AVX512F
                | CpuidFeature::XSAVE
                | CpuidFeature::XSAVEOPT
                | CpuidFeature::XSAVEC
                | CpuidFeature::XSAVES
                    if !cr4.contains(Cr4::OSXSAVE) =>
                {
                    return off("CR4.OSXSAVE is clear");
                }
                CpuidFeature::SSE
                | CpuidFeature::SSE2
                | CpuidFeature::SSE3
                | CpuidFeature::SSSE3
                | CpuidFeature::SSE4_1
                | CpuidFeature::SSE4_2
                    if uses_vectors(it) =>
                {
                    match () {
                        () if cr0.contains(Cr0::EM) => return off("CR0.EM is set"),
                        () if !cr4.contains(Cr4::OSFXSR) => return off("CR4.OSFXSR is clear"),
                        () if cr0.contains(Cr0::TS) => {
                            let why = format!("{}, and CR0.TS is set", words());
                            return Some(Fault::new(NO_DEVICE, why));
                        }
                        () => {}
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// The memory operands, explicit and implied.
    pub(super) fn memory(&self, it: &Instruction) -> Option<Fault> {
        if matches!(it.mnemonic(), Mnemonic::Lea | Mnemonic::Nop | Mnemonic::Invlpg) {
            return None;
        }
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(it);
        let faults = info.used_memory().iter().filter_map(|used| self.operand(it, used));
        let faults: Vec<_> = faults.collect();
        // Of several CR2 tells which it was.
        let told = |fault: &&Fault| fault.address == Some(self.cpu.cr2);
        faults.iter().find(told).or(faults.first()).cloned()
    }

    fn operand(&self, it: &Instruction, used: &UsedMemory) -> Option<Fault> {
        let access = match used.access() {
            OpAccess::None | OpAccess::NoMemAccess => return None,
            OpAccess::Read | OpAccess::CondRead => Access::Read,
            _ => Access::Write,
        };
        if operands::is_rep_done(it, self.cpu) {
            return None;
        }
        let stack = used.segment() == Register::SS;
        let behind = operands::bit_offset(it, self.cpu);
        let linear = operands::linear(used, self.cpu, behind)?;
        let size = match used.memory_size() {
            MemorySize::Unknown => 1,
            size => size.size().max(1) as u64,
        };
        let vector = if stack { STACK } else { PROTECTION };
        let last = linear.wrapping_add(size - 1);
        if self.cpu.mode() == Mode::Long {
            if !self.space.is_canonical(linear) || !self.space.is_canonical(last) {
                let what = access.words();
                return Some(Fault::new(
                    vector,
                    format!("{what} at {linear:#x}, which is not canonical"),
                ));
            }
        } else if let Some(why) = operands::beyond_limit(used, self.cpu, (behind, size), access) {
            return Some(Fault::new(vector, why));
        }
        if operands::is_misaligned(it, linear, size) {
            return Some(Fault::new(
                PROTECTION,
                format!("{} at {linear:#x}, which is not aligned to 16", disasm::text(it)),
            ));
        }
        // Of an access across pages the second one's first byte is what CR2 has.
        let crosses = linear >> PAGE_SHIFT != last >> PAGE_SHIFT;
        let next = if crosses { last >> PAGE_SHIFT << PAGE_SHIFT } else { linear };
        [linear, next]
            .into_iter()
            .find_map(|at| self.space.translate(at, access, self.user()).err().map(Fault::from))
            .or_else(|| self.alignment_check(it, linear, size))
    }

    /// Ring 3 has alignment checked where both CR0.AM and RFLAGS.AC ask for it. What more than
    /// eight bytes must be aligned to depends on the instruction, and is not looked at.
    fn alignment_check(&self, it: &Instruction, linear: u64, size: u64) -> Option<Fault> {
        let asked =
            self.cpu.cr0.contains(Cr0::AM) && self.cpu.rflags.contains(Rflags::AC) && self.user();
        let misaligned = matches!(size, 2 | 4 | 8) && !linear.is_multiple_of(size);
        (asked && misaligned).then(|| {
            let words = disasm::text(it);
            let why = format!(
                "{words} at {linear:#x}, which is not aligned to {size}, and CR0.AM and RFLAGS.AC are set"
            );
            Fault::new(ALIGNMENT, why)
        })
    }
}

/// Does it touch XMM registers (rather than, say, MXCSR or a fence)?
fn uses_vectors(it: &Instruction) -> bool {
    (0..it.op_count()).any(|n| it.op_register(n).is_vector_register())
}
