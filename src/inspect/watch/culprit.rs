//! Which instruction made an access that KVM told of when it had finished the instruction:
//! the one that ends where RIP stands, and writes so many bytes to that place.
//!
//! Called by `machine` for a broken rule of strict mode, when the vCPU stands still.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::Functions;
use crate::mem::{Bytes, GuestAddress, GuestMemory, PAGE_SIZE};
use crate::vcpu::{UnclaimedKind, Violation};
use crate::x86::CpuState;
use crate::x86::translate::translate;

/// The longest instruction, in bytes (Intel SDM Vol. 2A 2.3.11).
const LONGEST: u64 = 15;
/// Further than this from its function's start no instruction is looked for.
const FAR: u64 = 64 << 10;

/// RIP of the instruction, if only one can have been it.
pub fn culprit(
    violation: &Violation,
    memory: &GuestMemory,
    cpu: &CpuState,
    functions: &Functions,
) -> Option<u64> {
    let code = Code { memory, cpu };
    let next = violation.record.rip;
    let made = |at: &u64| code.decode(*at).is_some_and(|it| code.makes(&it, violation));
    let ends_here = |at: &u64| code.decode(*at).is_some_and(|it| it.next_ip() == next);
    let places = (1..=LONGEST).filter_map(|len| next.checked_sub(len));
    let found: Vec<u64> = places.filter(|at| ends_here(at) && made(at)).collect();
    match found[..] {
        [only] => Some(only),
        _ => code.before(next, functions).filter(|at| found.contains(at)),
    }
}

/// The guest's code.
struct Code<'a> {
    memory: &'a GuestMemory,
    cpu: &'a CpuState,
}

impl Code<'_> {
    fn base(&self) -> u64 {
        self.cpu.linear_rip().wrapping_sub(self.cpu.regs.rip)
    }

    fn decode(&self, rip: u64) -> Option<Instruction> {
        let byte = |at: u64| {
            let linear = self.base().wrapping_add(rip).wrapping_add(at);
            let address = translate(self.memory, self.cpu, linear)?;
            self.memory.read_obj::<u8>(GuestAddress(address)).ok()
        };
        let bytes: Vec<u8> = (0..LONGEST).map_while(byte).collect();
        let bits = self.cpu.code_bits();
        let decoded = Decoder::with_ip(bits, &bytes, rip, DecoderOptions::NONE).decode();
        (!decoded.is_invalid()).then_some(decoded)
    }

    /// The instruction before `next`, counted from the start of its function.
    fn before(&self, next: u64, functions: &Functions) -> Option<u64> {
        let mut at = functions.start_of(next.wrapping_sub(1));
        if at >= next || next - at > FAR {
            return None;
        }
        loop {
            match self.decode(at)?.next_ip() {
                end if end == next => return Some(at),
                end if end > next => return None,
                end => at = end,
            }
        }
    }

    /// Can it have made this access? Its registers are as they were after it.
    fn makes(&self, it: &Instruction, violation: &Violation) -> bool {
        let record = &violation.record;
        let size = usize::from(record.size);
        match violation.kind {
            UnclaimedKind::PioWrite => {
                let port = match it.op0_kind() {
                    OpKind::Immediate8 => it.immediate8().into(),
                    _ => self.cpu.regs.rdx as u16,
                };
                let is_out = match it.mnemonic() {
                    Mnemonic::Out => it.op1_register().size() == size,
                    Mnemonic::Outsb => size == 1,
                    Mnemonic::Outsw => size == 2,
                    Mnemonic::Outsd => size == 4,
                    _ => false,
                };
                is_out && u64::from(port) == record.address
            }
            UnclaimedKind::MmioWrite => (0..it.op_count())
                .any(|operand| self.writes(it, operand, record.address, record.size.into())),
            _ => false,
        }
    }

    /// Does an operand lie at `address`? A string instruction has gone on to the next element,
    /// in either direction.
    fn writes(&self, it: &Instruction, operand: u32, address: u64, size: u64) -> bool {
        let width = it.memory_size().size() as u64;
        let register = |register, _, _| value(register, self.cpu);
        let Some(linear) = it.virtual_address(operand, 0, register) else { return false };
        let moved = if it.is_string_instruction() { width } else { 0 };
        let starts = [linear, linear.wrapping_sub(moved), linear.wrapping_add(moved)];
        starts.into_iter().any(|start| {
            // KVM asks for eight bytes at a time, and for each page by itself.
            let in_parts = width > 8 || start % PAGE_SIZE + width > PAGE_SIZE;
            let mut parts = if in_parts { 0..width } else { 0..1 };
            let at = |part| translate(self.memory, self.cpu, start.wrapping_add(part));
            (width == size || in_parts) && parts.any(|part| at(part) == Some(address))
        })
    }
}

/// A register's value; that of a segment register is its base.
fn value(register: Register, cpu: &CpuState) -> Option<u64> {
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
        Register::CS => return Some(cpu.cs.base),
        Register::DS => return Some(cpu.ds.base),
        Register::ES => return Some(cpu.es.base),
        Register::FS => return Some(cpu.fs.base),
        Register::GS => return Some(cpu.gs.base),
        Register::SS => return Some(cpu.ss.base),
        _ => return None,
    };
    let bits = 8 * register.size().min(8);
    Some(full & (u64::MAX >> (64 - bits)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::watch::testing::cpu;
    use crate::kvm::Exit;
    use crate::mem;
    use crate::vcpu::{Record, Strict};
    use crate::x86::CpuInit;

    const AT: u64 = 0x1_0000;

    /// The offset of the culprit among `code`, after which RIP stands.
    fn find(code: &[u8], rdi: u64, functions: &Functions, exit: &Exit<'_>) -> Option<u64> {
        let memory = mem::create(2 << 20).unwrap();
        memory.write_slice(code, GuestAddress(AT)).unwrap();
        let next = AT + code.len() as u64;
        let mut cpu = cpu(CpuInit::protected(0, 8, 16), next, 0);
        cpu.regs.rdi = rdi;
        cpu.regs.rdx = 0x1230;
        let kind = match exit {
            Exit::PioOut { .. } => UnclaimedKind::PioWrite,
            _ => UnclaimedKind::MmioWrite,
        };
        let strict = Strict { io: true, mmio: true, ..Strict::default() };
        let violation = strict.check(kind, &Record::new(next, 0, exit)).unwrap();
        culprit(&violation, &memory, &cpu, functions).map(|at| at - AT)
    }

    #[test]
    fn the_instruction_that_ends_here_and_writes_there() {
        let none = Functions::default();
        let two = Exit::MmioWrite { address: 0xD000_0004, data: &[0, 0] };
        let four = Exit::MmioWrite { address: 0xD000_0004, data: &[0; 4] };
        let (word, dword): (&[u8], &[u8]) =
            (&[0x90, 0x66, 0x89, 0x47, 0x04], &[0x90, 0x89, 0x47, 0x04]);
        // mov [edi+4], ax and mov [edi+4], eax: a prefix apart.
        assert_eq!(find(word, 0xD000_0000, &none, &two), Some(1));
        assert_eq!(find(dword, 0xD000_0000, &none, &four), Some(1));
        assert_eq!(find(dword, 0xD000_1000, &none, &four), None);
        // stosd has moved EDI on.
        assert_eq!(find(&[0x90, 0xAB], 0xD000_0008, &none, &four), Some(1));
        // out dx, eax; out 0x80, al
        let port = Exit::PioOut { port: 0x1230, size: 4, data: &[0; 4] };
        assert_eq!(find(&[0x90, 0xEF], 0, &none, &port), Some(1));
        let port = Exit::PioOut { port: 0x80, size: 1, data: &[0] };
        assert_eq!(find(&[0x90, 0xE6, 0x80], 0, &none, &port), Some(1));
    }

    #[test]
    fn of_several_the_one_in_step_with_its_function() {
        // mov al, 0x36; mov [edi], eax. The immediate could be an SS prefix of the second.
        let code = [0xB0, 0x36, 0x89, 0x07];
        let exit = Exit::MmioWrite { address: 0xD000_0000, data: &[0; 4] };
        assert_eq!(find(&code, 0xD000_0000, &Functions::default(), &exit), None);
        let functions = Functions::named(&[(AT, AT + 16, "f")]);
        assert_eq!(find(&code, 0xD000_0000, &functions, &exit), Some(2));
    }
}
