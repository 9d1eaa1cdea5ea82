//! Which instruction made an access, when the vCPU stands behind it: where KVM told of it when
//! it had finished the instruction, the one that ends where RIP stands, and writes so many bytes
//! to that place.
//!
//! Called by `machine` for a broken rule of strict mode and a panic.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::inspect::{AddressSpace, Functions, operands};
use crate::mem::{GuestMemory, PAGE_SIZE};
use crate::vcpu::{Record, UnclaimedKind};
use crate::x86::CpuState;

/// The longest instruction, in bytes (Intel SDM Vol. 2A 2.3.11).
const LONGEST: u64 = 15;
/// Further than this from its function's start no instruction is looked for.
const FAR: u64 = 64 << 10;

/// RIP of the instruction, if only one can have been it; `cpu` is the vCPU's state now.
pub fn culprit(
    kind: UnclaimedKind,
    record: &Record,
    memory: &GuestMemory,
    cpu: &CpuState,
    functions: impl FnOnce() -> Functions,
) -> Option<u64> {
    let next = record.rip;
    if next != cpu.regs.rip {
        return Some(next); // it was finished after KVM had told of it
    }
    let code = Code { memory, cpu };
    let made = |at: u64| code.decode(at).filter(|it| code.makes(it, kind, record));
    let ends_here = |at: &u64| made(*at).is_some_and(|it| it.next_ip() == next);
    let places = (1..=LONGEST).filter_map(|len| next.checked_sub(len));
    let found: Vec<u64> = places.filter(ends_here).collect();
    // RIP stays at a repeated string instruction until its last element.
    let repeats = made(next).is_some_and(|it| it.has_rep_prefix() && cpu.regs.rcx != 0);
    if found.is_empty() && kind == UnclaimedKind::MmioWrite {
        let caller = code.caller(record, functions);
        return caller.or(repeats.then_some(next));
    }
    match found[..] {
        [] => repeats.then_some(next),
        [only] if !repeats => Some(only),
        _ => code.before(next, &functions()).filter(|at| !repeats && found.contains(at)),
    }
}

/// The guest's code.
struct Code<'a> {
    memory: &'a GuestMemory,
    cpu: &'a CpuState,
}

impl Code<'_> {
    fn space(&self) -> AddressSpace<'_> {
        AddressSpace::new(self.memory, self.cpu)
    }

    fn base(&self) -> u64 {
        self.cpu.linear_rip().wrapping_sub(self.cpu.regs.rip)
    }

    fn decode(&self, rip: u64) -> Option<Instruction> {
        let mut bytes = [0; LONGEST as usize];
        let there = self.space().peek(self.base().wrapping_add(rip), &mut bytes);
        let (bytes, bits) = (&bytes[..there], self.cpu.code_bits());
        let decoded = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE).decode();
        (!decoded.is_invalid()).then_some(decoded)
    }

    /// The instruction before `next`, counted from the start of its function.
    fn before(&self, next: u64, functions: &Functions) -> Option<u64> {
        let last = self.base().wrapping_add(next.wrapping_sub(1));
        let mut at = functions.start_of(last).wrapping_sub(self.base());
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

    /// The call that came here, if the write is that of its return address.
    fn caller(&self, record: &Record, functions: impl FnOnce() -> Functions) -> Option<u64> {
        let (back, here) = (record.value, record.rip);
        let comes_here = |at: &u64| {
            self.decode(*at).is_some_and(|it| {
                let target = match it.flow_control() {
                    FlowControl::Call => Some(it.near_branch_target()),
                    FlowControl::IndirectCall => value(it.op0_register(), self.cpu),
                    _ => None,
                };
                it.next_ip() == back && target == Some(here) && self.pushes(&it, record)
            })
        };
        let places = (1..=LONGEST).filter_map(|len| back.checked_sub(len));
        match places.filter(comes_here).collect::<Vec<_>>()[..] {
            [] => None,
            [only] => Some(only),
            ref found => self.before(back, &functions()).filter(|at| found.contains(at)),
        }
    }

    /// Has it pushed what was written, to where the stack ends now?
    fn pushes(&self, it: &Instruction, record: &Record) -> bool {
        let pushed = it.stack_pointer_increment() == -i32::from(record.size);
        let rsp = self.cpu.linear_rsp();
        pushed && self.space().physical(rsp) == Some(record.address)
    }

    /// Can it have made this access? Its registers are as they were after it.
    fn makes(&self, it: &Instruction, kind: UnclaimedKind, record: &Record) -> bool {
        let size = usize::from(record.size);
        match kind {
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
            UnclaimedKind::MmioWrite => {
                let writes = |operand| self.writes(it, operand, record.address, record.size.into());
                (0..it.op_count()).any(writes) || self.pushes(it, record)
            }
            _ => false,
        }
    }

    /// Does an operand lie at `address`? A string instruction has gone on to the next element,
    /// in either direction.
    fn writes(&self, it: &Instruction, operand: u32, address: u64, size: u64) -> bool {
        let width = it.memory_size().size() as u64;
        let register = |register, _, _| value(register, self.cpu);
        // Of an operand that is none in memory the address is 0.
        let is_memory = operands::is_memory(it.op_kind(operand));
        let linear = it.virtual_address(operand, 0, register).filter(|_| is_memory);
        let Some(linear) = linear else { return false };
        let linear = linear.wrapping_add(operands::bit_offset(it, self.cpu));
        let moved = if it.is_string_instruction() { width } else { 0 };
        let starts = [linear, linear.wrapping_sub(moved), linear.wrapping_add(moved)];
        starts.into_iter().any(|start| {
            // KVM asks for eight bytes at a time, and for each page by itself.
            let in_parts = width > 8 || start % PAGE_SIZE + width > PAGE_SIZE;
            let mut parts = if in_parts { 0..width } else { 0..1 };
            let at = |part| self.space().physical(start.wrapping_add(part));
            (width == size || in_parts) && parts.any(|part| at(part) == Some(address))
        })
    }
}

/// A register's value; that of a segment register is its base.
fn value(register: Register, cpu: &CpuState) -> Option<u64> {
    match operands::segment(register, cpu) {
        Some(segment) => Some(segment.base),
        None => operands::value(register, cpu),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::watch::testing::cpu;
    use crate::kvm::Exit;
    use crate::mem::{self, Bytes, GuestAddress};
    use crate::x86::CpuInit;

    const AT: u64 = 0x1_0000;

    type Named = &'static [(u64, u64, &'static str)];

    /// The offset of the culprit among `code`, after which RIP stands.
    fn find(code: &[u8], rdi: u64, functions: Named, exit: &Exit<'_>) -> Option<u64> {
        find_at(code, code.len() as u64, rdi, functions, exit)
    }

    /// The same with RIP at `rip` of the code.
    fn find_at(code: &[u8], rip: u64, rdi: u64, functions: Named, exit: &Exit<'_>) -> Option<u64> {
        let memory = mem::create(2 << 20).unwrap();
        memory.write_slice(code, GuestAddress(AT)).unwrap();
        let next = AT + rip;
        let mut cpu = cpu(CpuInit::protected(0, 8, 16), next, 0);
        cpu.regs.rdi = rdi;
        cpu.regs.rcx = 3;
        cpu.regs.rdx = 0x1230;
        let kind = match exit {
            Exit::PioOut { .. } => UnclaimedKind::PioWrite,
            _ => UnclaimedKind::MmioWrite,
        };
        let record = Record::new(next, 0, exit);
        culprit(kind, &record, &memory, &cpu, || Functions::named(functions)).map(|at| at - AT)
    }

    #[test]
    fn the_instruction_that_ends_here_and_writes_there() {
        let none: Named = &[];
        let two = Exit::MmioWrite { address: 0xD000_0004, data: &[0, 0] };
        let four = Exit::MmioWrite { address: 0xD000_0004, data: &[0; 4] };
        let (word, dword): (&[u8], &[u8]) =
            (&[0x90, 0x66, 0x89, 0x47, 0x04], &[0x90, 0x89, 0x47, 0x04]);
        // mov [edi+4], ax and mov [edi+4], eax: a prefix apart.
        assert_eq!(find(word, 0xD000_0000, none, &two), Some(1));
        assert_eq!(find(dword, 0xD000_0000, none, &four), Some(1));
        assert_eq!(find(dword, 0xD000_1000, none, &four), None);
        // stosd has moved EDI on.
        assert_eq!(find(&[0x90, 0xAB], 0xD000_0008, none, &four), Some(1));
        // out dx, eax; out 0x80, al
        let port = Exit::PioOut { port: 0x1230, size: 4, data: &[0; 4] };
        assert_eq!(find(&[0x90, 0xEF], 0, none, &port), Some(1));
        let port = Exit::PioOut { port: 0x80, size: 1, data: &[0] };
        assert_eq!(find(&[0x90, 0xE6, 0x80], 0, none, &port), Some(1));
    }

    #[test]
    fn of_several_the_one_in_step_with_its_function() {
        // mov al, 0x36; mov [edi], eax. The immediate could be an SS prefix of the second.
        let code = [0xB0, 0x36, 0x89, 0x07];
        let exit = Exit::MmioWrite { address: 0xD000_0000, data: &[0; 4] };
        assert_eq!(find(&code, 0xD000_0000, &[], &exit), None);
        let functions: Named = &[(AT, AT + 16, "f")];
        assert_eq!(find(&code, 0xD000_0000, functions, &exit), Some(2));
    }

    /// Memory with `code` at AT, and a vCPU that stands at `rip` of it with its stack at AT + 0x100.
    fn stand(code: &[u8], rip: u64) -> (GuestMemory, CpuState) {
        let memory = mem::create(2 << 20).unwrap();
        memory.write_slice(code, GuestAddress(AT)).unwrap();
        let mut cpu = cpu(CpuInit::protected(0, 8, 16), AT + rip, 0);
        cpu.regs.rsp = AT + 0x100;
        (memory, cpu)
    }

    fn pushed(code: &[u8], rip: u64, value: u32) -> Option<u64> {
        let (memory, cpu) = stand(code, rip);
        let data = value.to_le_bytes();
        let exit = Exit::MmioWrite { address: AT + 0x100, data: &data };
        let record = Record::new(AT + rip, 0, &exit);
        let kind = UnclaimedKind::MmioWrite;
        culprit(kind, &record, &memory, &cpu, || Functions::named(&[])).map(|at| at - AT)
    }

    #[test]
    fn a_push_and_a_call_write_to_the_stack() {
        // nop; push eax
        assert_eq!(pushed(&[0x90, 0x50], 2, 7), Some(1));
        // ret; call the ret; nop: RIP stands at the ret.
        let code = [0xC3, 0xE8, 0xFA, 0xFF, 0xFF, 0xFF, 0x90];
        assert_eq!(pushed(&code, 0, AT as u32 + 6), Some(1));
        assert_eq!(pushed(&code, 0, AT as u32 + 7), None);
        // The same call, of something else.
        assert_eq!(pushed(&[0xC3, 0xE8, 0, 0, 0, 0, 0x90], 0, AT as u32 + 6), None);
        // call the next instruction
        assert_eq!(pushed(&[0xE8, 0, 0, 0, 0, 0x90], 5, AT as u32 + 5), Some(0));
    }

    #[test]
    fn a_register_is_no_operand_at_address_zero() {
        // mov cl, al; rep stosb, at address 0 with elements left
        let exit = Exit::MmioWrite { address: 0, data: &[0] };
        assert_eq!(find_at(&[0x88, 0xC1, 0xF3, 0xAA], 2, 0, &[], &exit), Some(2));
    }

    #[test]
    fn rip_stays_at_a_repeated_instruction() {
        // nop; rep stosb, with elements left; the next would go one byte further.
        let exit = Exit::MmioWrite { address: 0xD000_0000, data: &[0] };
        assert_eq!(find_at(&[0x90, 0xF3, 0xAA], 1, 0xD000_0001, &[], &exit), Some(1));
        // stosb; rep stosb: it may have been either.
        assert_eq!(find_at(&[0xAA, 0xF3, 0xAA], 1, 0xD000_0001, &[], &exit), None);
    }
}
