//! Where an instruction's memory operands lie.

use iced_x86::{CodeSize, Instruction, Mnemonic, OpKind, Register, UsedMemory};

use super::walk::Access;
use crate::x86::{CpuState, Mode, Segment};

/// A register's value; `None` for those that are not known here.
pub(super) fn value(register: Register, cpu: &CpuState) -> Option<u64> {
    let regs = &cpu.regs;
    let full = match register.full_register() {
        Register::RAX => regs.rax,
        Register::RBX => regs.rbx,
        Register::RCX => regs.rcx,
        Register::RDX => regs.rdx,
        Register::RSI => regs.rsi,
        Register::RDI => regs.rdi,
        Register::RSP => regs.rsp,
        Register::RBP => regs.rbp,
        Register::R8 => regs.r8,
        Register::R9 => regs.r9,
        Register::R10 => regs.r10,
        Register::R11 => regs.r11,
        Register::R12 => regs.r12,
        Register::R13 => regs.r13,
        Register::R14 => regs.r14,
        Register::R15 => regs.r15,
        _ => match segment(register, cpu) {
            Some(segment) => segment.selector.into(),
            None => return None,
        },
    };
    let high = matches!(register, Register::AH | Register::BH | Register::CH | Register::DH);
    Some(match register.size() {
        1 if high => full >> 8 & 0xFF,
        1 => full & 0xFF,
        2 => full & 0xFFFF,
        4 => full & 0xFFFF_FFFF,
        _ => full,
    })
}

pub(super) fn segment(register: Register, cpu: &CpuState) -> Option<&Segment> {
    Some(match register {
        Register::CS => &cpu.cs,
        Register::DS => &cpu.ds,
        Register::ES => &cpu.es,
        Register::FS => &cpu.fs,
        Register::GS => &cpu.gs,
        Register::SS => &cpu.ss,
        _ => return None,
    })
}

/// The offset in its segment.
fn offset(used: &UsedMemory, cpu: &CpuState) -> Option<u64> {
    let part = |register: Register| match register {
        Register::None => Some(0),
        register => value(register, cpu),
    };
    let index = part(used.index())?.wrapping_mul(used.scale().into());
    let sum = part(used.base())?.wrapping_add(index).wrapping_add(used.displacement());
    Some(match used.address_size() {
        CodeSize::Code16 => sum & 0xFFFF,
        CodeSize::Code32 => sum & 0xFFFF_FFFF,
        _ => sum,
    })
}

/// How far from its operand BT and its relatives look for a bit that a register numbers (Intel SDM
/// Vol. 2A, BT): in steps of the operand's size, to both sides.
pub(super) fn bit_offset(it: &Instruction, cpu: &CpuState) -> u64 {
    let is_bit =
        matches!(it.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    let register = it.op1_register();
    let Some(bit) = value(register, cpu).filter(|_| is_bit && it.op0_kind() == OpKind::Memory)
    else {
        return 0;
    };
    let words = match register.size() {
        2 => i64::from(bit as i16 >> 4) * 2,
        4 => i64::from(bit as i32 >> 5) * 4,
        _ => (bit as i64 >> 6) * 8,
    };
    words as u64
}

/// The linear address, so many bytes behind where the operand says.
pub(super) fn linear(used: &UsedMemory, cpu: &CpuState, behind: u64) -> Option<u64> {
    let offset = offset(used, cpu)?.wrapping_add(behind);
    let based = match (cpu.mode(), used.segment()) {
        (Mode::Long, Register::FS | Register::GS) | (Mode::Real | Mode::Protected, _) => {
            offset.wrapping_add(segment(used.segment(), cpu)?.base)
        }
        (Mode::Long, _) => offset,
    };
    Some(if cpu.mode() == Mode::Long { based } else { based & 0xFFFF_FFFF })
}

/// Does such an operand lie in memory?
pub(super) fn is_memory(kind: OpKind) -> bool {
    use OpKind::{
        Memory, MemoryESDI, MemoryESEDI, MemoryESRDI, MemorySegDI, MemorySegEDI, MemorySegESI,
        MemorySegRDI, MemorySegRSI, MemorySegSI,
    };
    matches!(
        kind,
        Memory
            | MemoryESDI
            | MemoryESEDI
            | MemoryESRDI
            | MemorySegDI
            | MemorySegEDI
            | MemorySegESI
            | MemorySegRDI
            | MemorySegRSI
            | MemorySegSI
    )
}

/// Do the offsets above its limit count?
pub(super) fn expands_down(segment: &Segment) -> bool {
    segment.code_or_data && segment.kind & 0b1100 == 0b0100
}

/// What the segment has against an access, outside long mode.
pub(super) fn beyond_limit(
    used: &UsedMemory,
    cpu: &CpuState,
    (behind, size): (u64, u64),
    access: Access,
) -> Option<String> {
    let (segment, offset) =
        (segment(used.segment(), cpu)?, offset(used, cpu)?.wrapping_add(behind));
    let name = format!("{:?}", used.segment());
    if !segment.present {
        return Some(format!("{} by way of {name}, which holds no segment", access.words()));
    }
    let (last, limit) = (offset.wrapping_add(size - 1), u64::from(segment.limit));
    let outside =
        if expands_down(segment) { offset <= limit } else { last > limit || last < offset };
    if outside {
        let words = access.words();
        return Some(format!(
            "{words} at {name}:{offset:#x}, beyond the segment's limit {limit:#x}"
        ));
    }
    let writable = segment.kind & 0b1010 == 0b0010;
    let readable = segment.kind & 0b1010 != 0b1000;
    match access {
        Access::Write if cpu.mode() == Mode::Protected && !writable => {
            Some(format!("write by way of {name}, a segment that is not writable"))
        }
        Access::Read if cpu.mode() == Mode::Protected && !readable => {
            Some(format!("read by way of {name}, a segment that is not readable"))
        }
        _ => None,
    }
}

/// A repeated string instruction with nothing left to do touches no memory.
pub(super) fn is_rep_done(it: &Instruction, cpu: &CpuState) -> bool {
    let counts = it.has_rep_prefix() || it.has_repne_prefix();
    it.is_string_instruction() && counts && cpu.regs.rcx == 0
}

/// Does it demand 16 bytes of alignment, in vain?
pub(super) fn is_misaligned(it: &Instruction, linear: u64, size: u64) -> bool {
    let aligned = matches!(
        it.mnemonic(),
        Mnemonic::Movaps
            | Mnemonic::Movapd
            | Mnemonic::Movdqa
            | Mnemonic::Movntps
            | Mnemonic::Movntdq
            | Mnemonic::Cmpxchg16b
            | Mnemonic::Fxsave
            | Mnemonic::Fxsave64
            | Mnemonic::Fxrstor
            | Mnemonic::Fxrstor64
    );
    aligned && size >= 16 && linear & 15 != 0
}
