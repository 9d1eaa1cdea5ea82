//! What particular instructions check beside their memory operands: privilege, selectors,
//! control registers, the targets of jumps, division.

use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::descriptor::{self, Descriptor, Missing};
use super::disasm;
use super::fault::{DEBUG, DIVIDE, Fault, NOT_PRESENT, PROTECTION, STACK, Standing};
use super::operands;
use crate::x86::{Cr0, Cr4, Efer, Mode, Rflags};

/// Instructions that only ring 0 may run, or those rings that IOPL or the TSS's I/O bitmap lets
/// (Intel SDM Vol. 1 19.5; of virtual-8086 mode Vol. 3B 21.2).
pub(super) fn privilege(at: &Standing<'_>, it: &Instruction) -> Option<Fault> {
    let ring = at.cpu.ring();
    let virtual_8086 = at.cpu.rflags.contains(Rflags::VM);
    let by_iopl = ring <= at.cpu.rflags.iopl();
    // An interrupt flag of its own.
    let has_flag = match virtual_8086 {
        true => at.cpu.cr4.contains(Cr4::VME),
        false => ring == 3 && at.cpu.cr4.contains(Cr4::PVI),
    };
    let refuse = |why: String| Some(Fault::new(PROTECTION, format!("{}{why}", disasm::text(it))));
    let in_ring = || refuse(format!(" in ring {ring}"));
    let below_iopl = || refuse(" in virtual-8086 mode, with IOPL below 3".to_owned());
    match it.mnemonic() {
        _ if ring == 0 => None,
        Mnemonic::Cli | Mnemonic::Sti if by_iopl || has_flag => None,
        Mnemonic::Pushf | Mnemonic::Popf | Mnemonic::Int | Mnemonic::Iret
            if virtual_8086 && !by_iopl && !has_flag =>
        {
            below_iopl()
        }
        Mnemonic::Pushfd | Mnemonic::Popfd | Mnemonic::Iretd if virtual_8086 && !by_iopl => {
            below_iopl()
        }
        Mnemonic::In
        | Mnemonic::Insb
        | Mnemonic::Insw
        | Mnemonic::Insd
        | Mnemonic::Out
        | Mnemonic::Outsb
        | Mnemonic::Outsw
        | Mnemonic::Outsd => {
            let may = by_iopl && !virtual_8086 || has_port(at, it)?;
            if may { None } else { in_ring() }
        }
        _ if it.is_privileged() => in_ring(),
        _ => None,
    }
}

/// Does the TSS's I/O bitmap let it use its port? `None` where the TSS cannot be read.
fn has_port(at: &Standing<'_>, it: &Instruction) -> Option<bool> {
    const MAP_BASE: u64 = 102;
    let tss = &at.cpu.tr;
    let limit = u64::from(tss.limit);
    // A 16-bit TSS has none.
    if tss.kind & 8 == 0 || limit < MAP_BASE + 1 {
        return Some(false);
    }
    let port = if it.op0_kind() == OpKind::Immediate8 || it.op1_kind() == OpKind::Immediate8 {
        u64::from(it.immediate8())
    } else {
        at.cpu.regs.rdx & 0xFFFF
    };
    let size = match it.mnemonic() {
        Mnemonic::In => it.op0_register().size(),
        Mnemonic::Out => it.op1_register().size(),
        _ => it.memory_size().size(),
    };
    let map = at.space.peek_number(tss.base.wrapping_add(MAP_BASE), 2)?;
    // Two bytes are read, whichever the ports are.
    let first = map + port / 8;
    if first + 1 > limit {
        return Some(false);
    }
    let bits = at.space.peek_number(tss.base.wrapping_add(first), 2)?;
    Some(bits >> (port % 8) & ((1 << size) - 1) == 0)
}

pub(super) fn fault(at: &Standing<'_>, it: &Instruction) -> Option<Fault> {
    match it.mnemonic() {
        Mnemonic::Int3 => Some(Fault::software(3, disasm::text(it))),
        Mnemonic::Int1 => Some(Fault::new(DEBUG, disasm::text(it))),
        Mnemonic::Int => Some(Fault::software(it.immediate8(), disasm::text(it))),
        Mnemonic::Into if at.cpu.rflags.contains(Rflags::OF) => Some(Fault::software(4, "into")),
        Mnemonic::Div | Mnemonic::Idiv => division(at, it),
        Mnemonic::Aam if it.immediate8() == 0 => Some(Fault::new(DIVIDE, disasm::text(it))),
        Mnemonic::Lidt | Mnemonic::Lgdt => descriptor_table(at, it),
        Mnemonic::Xsetbv => extended_control(at, it),
        Mnemonic::Ltr => system_segment(at, it, &[1, 9], "an available TSS"),
        Mnemonic::Lldt => system_segment(at, it, &[2], "an LDT"),
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => interrupt_return(at, it),
        Mnemonic::Retf => far_return(at, it),
        _ if loads_segment(it) => segment_load(at, it.op0_register(), selector(at, it)?),
        Mnemonic::Mov if it.op0_register().is_cr() => control_register(at, it),
        Mnemonic::Mov if it.op0_register().is_dr() => debug_register(at, it),
        Mnemonic::Rdmsr | Mnemonic::Wrmsr => {
            let msr = at.cpu.regs.rcx as u32;
            Some(Fault::new(PROTECTION, format!("{} of MSR {msr:#x}", disasm::text(it))))
        }
        _ => far_branch(at, it).or_else(|| target(at, it)),
    }
}

/// MOV and POP to a segment register.
fn loads_segment(it: &Instruction) -> bool {
    matches!(it.mnemonic(), Mnemonic::Mov | Mnemonic::Pop)
        && it.op0_register().is_segment_register()
}

/// The selector of the segment that it loads: of several the code segment's.
pub(super) fn selector(at: &Standing<'_>, it: &Instruction) -> Option<u16> {
    let on_stack = |offset: u64| {
        let selector = at.space.peek_number(at.cpu.linear_rsp().wrapping_add(offset), 2);
        selector.map(|it| it as u16)
    };
    match it.mnemonic() {
        _ if loads_segment(it) && it.mnemonic() == Mnemonic::Pop => on_stack(0),
        _ if loads_segment(it) => operand(at, it, 1).map(|it| it as u16),
        Mnemonic::Retf => on_stack(far_return_width(it)),
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => on_stack(iret_width(it)),
        _ => far_selector(at, it),
    }
}

/// The value of operand `n`: a register, an immediate, or memory.
fn operand(at: &Standing<'_>, it: &Instruction, n: u32) -> Option<u64> {
    match it.op_kind(n) {
        OpKind::Register => operands::value(it.op_register(n), at.cpu),
        OpKind::Memory => at.space.peek_number(address(at, it, n)?, it.memory_size().size()),
        _ => Some(it.immediate(n)),
    }
}

/// The linear address of operand `n`, which is memory.
fn address(at: &Standing<'_>, it: &Instruction, n: u32) -> Option<u64> {
    let linear =
        it.virtual_address(n, 0, |register, _, _| match operands::segment(register, at.cpu) {
            Some(_)
                if at.cpu.mode() == Mode::Long
                    && !matches!(register, Register::FS | Register::GS) =>
            {
                Some(0)
            }
            Some(segment) => Some(segment.base),
            None => operands::value(register, at.cpu),
        })?;
    Some(if at.cpu.mode() == Mode::Long { linear } else { linear & 0xFFFF_FFFF })
}

/// LIDT and LGDT: 64-bit mode wants a base that is canonical, behind a limit of two bytes.
fn descriptor_table(at: &Standing<'_>, it: &Instruction) -> Option<Fault> {
    if at.cpu.mode() != Mode::Long {
        return None;
    }
    let base = at.space.peek_number(address(at, it, 0)?.wrapping_add(2), 8)?;
    (!at.space.is_canonical(base)).then(|| {
        let why = format!("{} with base {base:#x}, which is not canonical", disasm::text(it));
        Fault::new(PROTECTION, why)
    })
}

/// What XSETBV refuses of any processor (Vol. 1 13.3); which bits this one has is not known here.
fn extended_control(at: &Standing<'_>, it: &Instruction) -> Option<Fault> {
    const X87: u64 = 1 << 0;
    const SSE: u64 = 1 << 1;
    const AVX: u64 = 1 << 2;
    let (number, value) = (at.cpu.regs.rcx as u32, at.cpu.regs.rax & 0xFFFF_FFFF);
    let why = match () {
        () if number != 0 => format!("there is no XCR{number}"),
        () if value & X87 == 0 => "bit 0 of XCR0 cannot be clear".to_owned(),
        () if value & (SSE | AVX) == AVX => "AVX without SSE".to_owned(),
        () => return None,
    };
    Some(Fault::new(PROTECTION, format!("{} with {value:#x}: {why}", disasm::text(it))))
}

/// What MOV to a debug register refuses (Vol. 2B, MOV: debug registers).
fn debug_register(at: &Standing<'_>, it: &Instruction) -> Option<Fault> {
    let value = operand(at, it, 1)?;
    let high = matches!(it.op0_register(), Register::DR6 | Register::DR7) && value >> 32 != 0;
    high.then(|| {
        let why = format!("{} with {value:#x}: bits above 31", disasm::text(it));
        Fault::new(PROTECTION, why)
    })
}

/// Near jumps, calls and returns to where no code can be.
fn target(at: &Standing<'_>, it: &Instruction) -> Option<Fault> {
    if at.cpu.mode() != Mode::Long {
        return None;
    }
    let target = match it.flow_control() {
        FlowControl::Return if it.mnemonic() == Mnemonic::Ret => {
            at.space.peek_number(at.cpu.linear_rsp(), 8)?
        }
        FlowControl::IndirectBranch | FlowControl::IndirectCall if it.op_count() == 1 => {
            operand(at, it, 0)?
        }
        _ => return None,
    };
    (!at.space.is_canonical(target)).then(|| {
        let why = format!("{} to {target:#x}, which is not canonical", disasm::text(it));
        Fault::new(PROTECTION, why)
    })
}

fn division(at: &Standing<'_>, it: &Instruction) -> Option<Fault> {
    let divisor = operand(at, it, 0)?;
    if divisor == 0 {
        return Some(Fault::new(DIVIDE, format!("{} by zero", disasm::text(it))));
    }
    let size = match it.op_kind(0) {
        OpKind::Register => it.op0_register().size(),
        _ => it.memory_size().size(),
    };
    let (high, low) = (at.cpu.regs.rdx, at.cpu.regs.rax);
    // The quotient fits where the high half is less than the divisor.
    let high = match size {
        1 => low >> 8 & 0xFF,
        2 => high & 0xFFFF,
        4 => high & 0xFFFF_FFFF,
        _ => high,
    };
    (it.mnemonic() == Mnemonic::Div && high >= divisor)
        .then(|| Fault::new(DIVIDE, format!("{}: the quotient is too large", disasm::text(it))))
}

/// A descriptor, or the fault that looking it up raises.
fn find(at: &Standing<'_>, selector: u16, what: &str) -> Result<Descriptor, Fault> {
    descriptor::lookup(&at.space, at.cpu, selector).map_err(|missing| match missing {
        Missing::Null => Fault::new(PROTECTION, format!("{what} a null selector")),
        Missing::Beyond(words) => {
            let code = u32::from(selector & !3);
            Fault::with_code(PROTECTION, code, format!("{what} {selector:#x}: {words}"))
        }
        Missing::Fault(fault) => fault.into(),
    })
}

/// A data segment register is loaded.
fn segment_load(at: &Standing<'_>, register: Register, selector: u16) -> Option<Fault> {
    if at.cpu.mode() == Mode::Real {
        return None;
    }
    let stack = register == Register::SS;
    let null = selector & !3 == 0;
    // 64-bit mode lets SS be null below ring 3 (Vol. 3A 6.14.2).
    if null && !(stack && (at.cpu.mode() != Mode::Long || at.cpu.ring() == 3)) {
        return None;
    }
    let what = format!("{register:?} loaded with");
    let descriptor = match find(at, selector, &what) {
        Ok(descriptor) => descriptor,
        Err(fault) => return Some(fault),
    };
    let code = u32::from(selector & !3);
    let fits = if stack { descriptor.is_writable_data() } else { descriptor.is_readable() };
    if !fits {
        let words = if stack { descriptor.no_stack_words() } else { descriptor.words() };
        let why = format!("{what} {selector:#x}, which is {words}");
        return Some(Fault::with_code(PROTECTION, code, why));
    }
    let (dpl, ring, rpl) = (descriptor.dpl(), at.cpu.ring(), (selector & 3) as u8);
    let allowed = match stack {
        true => dpl == ring && rpl == ring,
        false => descriptor.is_conforming() || dpl >= ring.max(rpl),
    };
    if !allowed {
        let why = format!("{what} {selector:#x}: its privilege level is {dpl}, in ring {ring}");
        return Some(Fault::with_code(PROTECTION, code, why));
    }
    (!descriptor.present()).then(|| {
        let vector = if stack { STACK } else { NOT_PRESENT };
        Fault::with_code(vector, code, format!("{what} {selector:#x}, which is not present"))
    })
}

/// A code segment is entered by a far transfer.
fn code_segment(at: &Standing<'_>, selector: u16, what: &str) -> Option<Fault> {
    if at.cpu.mode() == Mode::Real {
        return None;
    }
    let descriptor = match find(at, selector, what) {
        Ok(descriptor) => descriptor,
        Err(fault) => return Some(fault),
    };
    let code = u32::from(selector & !3);
    // A jump through a call gate or a TSS goes on elsewhere.
    let goes_on = !descriptor.is_segment() && matches!(descriptor.kind(), 1 | 4 | 5 | 9 | 12);
    if !descriptor.is_code() && !goes_on {
        let why = format!("{what} {selector:#x}, which is {}", descriptor.words());
        return Some(Fault::with_code(PROTECTION, code, why));
    }
    if descriptor.is_code()
        && descriptor.long()
        && descriptor.default_32()
        && at.cpu.efer.contains(Efer::LMA)
    {
        let why = format!("{what} {selector:#x}, whose L and D bits are both set");
        return Some(Fault::with_code(PROTECTION, code, why));
    }
    (!descriptor.present()).then(|| {
        let why = format!("{what} {selector:#x}, which is not present");
        Fault::with_code(NOT_PRESENT, code, why)
    })
}

fn far_branch(at: &Standing<'_>, it: &Instruction) -> Option<Fault> {
    let what =
        if it.is_jmp_far() || it.is_jmp_far_indirect() { "far jump to" } else { "far call to" };
    code_segment(at, far_selector(at, it)?, what)
}

/// The code segment's selector of a far jump or call.
fn far_selector(at: &Standing<'_>, it: &Instruction) -> Option<u16> {
    let far = it.is_jmp_far() || it.is_call_far();
    let indirect = it.is_jmp_far_indirect() || it.is_call_far_indirect();
    if far {
        return Some(it.far_branch_selector());
    }
    let size = indirect.then(|| it.memory_size().size())?;
    let linear = address(at, it, 0)?.wrapping_add(size as u64 - 2);
    at.space.peek_number(linear, 2).map(|it| it as u16)
}

fn far_return(at: &Standing<'_>, it: &Instruction) -> Option<Fault> {
    code_segment(at, selector(at, it)?, "far return to")
}

/// Bytes of each of the values that it takes from the stack.
fn far_return_width(it: &Instruction) -> u64 {
    match it.code() {
        Code::Retfq | Code::Retfq_imm16 => 8,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 2,
    }
}

/// The same for IRET.
fn iret_width(it: &Instruction) -> u64 {
    match it.mnemonic() {
        Mnemonic::Iretq => 8,
        Mnemonic::Iretd => 4,
        _ => 2,
    }
}

/// The value that IRET takes `n`th from the stack.
pub(super) fn iret_slot(at: &Standing<'_>, it: &Instruction, n: u64) -> Option<u64> {
    let width = iret_width(it);
    at.space.peek_number(at.cpu.linear_rsp().wrapping_add(n * width), width as usize)
}

/// Does IRET go to virtual-8086 mode, where CS is no selector?
pub(super) fn enters_virtual_8086(at: &Standing<'_>, it: &Instruction) -> Option<bool> {
    let flags = Rflags::from_bits_retain(iret_slot(at, it, 2)?);
    let may = at.cpu.mode() == Mode::Protected && at.cpu.ring() == 0;
    Some(may && flags.contains(Rflags::VM))
}

fn interrupt_return(at: &Standing<'_>, it: &Instruction) -> Option<Fault> {
    let slot = |n| iret_slot(at, it, n);
    if enters_virtual_8086(at, it)? {
        return None;
    }
    if let Some(fault) = code_segment(at, slot(1)? as u16, "iret to") {
        return Some(fault);
    }
    let rip = slot(0)?;
    if at.cpu.mode() == Mode::Long && !at.space.is_canonical(rip) {
        return Some(Fault::new(PROTECTION, format!("iret to {rip:#x}, which is not canonical")));
    }
    let ring = (slot(1)? & 3) as u8;
    if iret_width(it) < 8 || ring == 0 {
        return None;
    }
    let stack = slot(4)? as u16;
    match find(at, stack, "iret to stack segment") {
        Err(fault) => Some(fault),
        Ok(found) if !found.is_writable_data() || found.dpl() != ring => {
            let why = format!("iret to stack segment {stack:#x}, which does not fit ring {ring}");
            Some(Fault::with_code(PROTECTION, u32::from(stack & !3), why))
        }
        Ok(_) => None,
    }
}

/// LTR and LLDT.
fn system_segment(
    at: &Standing<'_>,
    it: &Instruction,
    kinds: &[u8],
    wanted: &str,
) -> Option<Fault> {
    let selector = operand(at, it, 0)? as u16;
    let what = disasm::text(it);
    if selector & !3 == 0 && it.mnemonic() == Mnemonic::Lldt {
        return None;
    }
    let descriptor = match find(at, selector, &format!("{what} with")) {
        Ok(descriptor) => descriptor,
        Err(fault) => return Some(fault),
    };
    let code = u32::from(selector & !3);
    if descriptor.is_segment() || !kinds.contains(&descriptor.kind()) {
        let why =
            format!("{what} with {selector:#x}, which is {}, not {wanted}", descriptor.words());
        return Some(Fault::with_code(PROTECTION, code, why));
    }
    (!descriptor.present()).then(|| {
        Fault::with_code(
            NOT_PRESENT,
            code,
            format!("{what} with {selector:#x}, which is not present"),
        )
    })
}

/// What MOV to CR0, CR3, CR4 and CR8 refuses (Vol. 2B, MOV: control registers).
fn control_register(at: &Standing<'_>, it: &Instruction) -> Option<Fault> {
    let value = operand(at, it, 1)?;
    let words = disasm::text(it);
    let refused =
        |why: &str| Some(Fault::new(PROTECTION, format!("{words} with {value:#x}: {why}")));
    let cpu = at.cpu;
    match it.op0_register() {
        Register::CR0 => {
            let cr0 = Cr0::from_bits_retain(value);
            let enters_long = cpu.efer.contains(Efer::LME) && !cpu.cr0.contains(Cr0::PG);
            match () {
                () if cr0.contains(Cr0::PG) && !cr0.contains(Cr0::PE) => refused("PG without PE"),
                () if cr0.contains(Cr0::NW) && !cr0.contains(Cr0::CD) => refused("NW without CD"),
                () if cr0.contains(Cr0::PG) && enters_long && !cpu.cr4.contains(Cr4::PAE) => {
                    refused("long mode without CR4.PAE")
                }
                () if value >> 32 != 0 => refused("bits above 31"),
                () if cpu.mode() == Mode::Long && !cr0.contains(Cr0::PG) => {
                    refused("64-bit code cannot clear PG")
                }
                () if cpu.cr4.contains(Cr4::PCIDE) && !cr0.contains(Cr0::PG) => {
                    refused("PG cannot be cleared with CR4.PCIDE")
                }
                () => None,
            }
        }
        Register::CR8 if value > 0xF => refused("bits above 3"),
        Register::CR3 => at.space.bad_cr3(value).and_then(|why| refused(&why)),
        Register::CR4 => {
            let cr4 = Cr4::from_bits_retain(value);
            match () {
                () if cpu.efer.contains(Efer::LMA) && !cr4.contains(Cr4::PAE) => {
                    refused("PAE cannot be cleared in long mode")
                }
                () if value >> 32 != 0 => refused("bits above 31"),
                () => refused("a bit that this processor does not have"),
            }
        }
        _ => None,
    }
}
