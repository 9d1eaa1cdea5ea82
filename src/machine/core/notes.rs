//! The registers in a core: one NT_PRSTATUS a vCPU (Linux, include/linux/elfcore.h).

use super::elf::Class;
use crate::inspect::{Cpu, Registers};
use crate::x86::Regs;

const NT_PRSTATUS: u32 = 1;
/// Where `struct elf_prstatus` has its signal.
const SIGNAL: usize = 12;
/// What a debugger shows of a processor that died.
const SIGSEGV: u16 = 11;

/// All notes; the vCPU that died comes first, because a debugger begins there.
pub(super) fn notes(class: Class, cpus: &[Cpu]) -> Vec<u8> {
    let (died, others): (Vec<_>, Vec<_>) = cpus.iter().partition(|cpu| cpu.died);
    died.into_iter().chain(others).flat_map(|cpu| note(class, cpu)).collect()
}

fn note(class: Class, cpu: &Cpu) -> Vec<u8> {
    // Bytes of `struct elf_prstatus`, and where it has the process's number and registers.
    let (size, process, at, values) = match class {
        Class::Elf32 => (144, 24, 72, registers_32(&cpu.registers).to_vec()),
        Class::Elf64 => (336, 32, 112, registers(&cpu.registers).to_vec()),
    };
    let mut status = vec![0; size];
    if cpu.died {
        status[SIGNAL..SIGNAL + 2].copy_from_slice(&SIGSEGV.to_le_bytes());
    }
    // Number 0 is no process.
    status[process..process + 4].copy_from_slice(&(cpu.id + 1).to_le_bytes());
    let bytes: Vec<_> = values.into_iter().flat_map(|value| class.word(value)).collect();
    status[at..at + bytes.len()].copy_from_slice(&bytes);
    let mut note = 5_u32.to_le_bytes().to_vec(); // the name's bytes, with its NUL
    note.extend((size as u32).to_le_bytes());
    note.extend(NT_PRSTATUS.to_le_bytes());
    note.extend(b"CORE\0\0\0\0");
    note.extend(status);
    note
}

/// In the order of i386's `struct user_regs_struct`.
fn registers_32(all: &Registers) -> [u64; 17] {
    let [
        _,
        _,
        _,
        _,
        bp,
        bx,
        _,
        _,
        _,
        _,
        ax,
        cx,
        dx,
        si,
        di,
        none,
        ip,
        cs,
        flags,
        sp,
        ss,
        _,
        _,
        ds,
        es,
        fs,
        gs,
    ] = registers(all);
    [bx, cx, dx, si, di, bp, ax, ds, es, fs, gs, none, ip, cs, flags, sp, ss]
}

/// In the order of `struct user_regs_struct`. RIP and RSP are linear addresses: a debugger
/// knows no segments.
fn registers(registers: &Registers) -> [u64; 27] {
    let &Regs { rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, .. } =
        registers.regs();
    let general = [r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi];
    let none = u64::MAX; // no system call
    let rest = match registers {
        Registers::Whole(it) => {
            let selector = |segment: &crate::x86::Segment| u64::from(segment.selector);
            [
                none,
                it.linear_rip(),
                selector(&it.cs),
                it.rflags.bits(),
                it.linear_rsp(),
                selector(&it.ss),
                it.fs.base,
                it.gs.base,
                selector(&it.ds),
                selector(&it.es),
                selector(&it.fs),
                selector(&it.gs),
            ]
        }
        Registers::General { regs, rflags } => {
            [none, regs.rip, 0, rflags.bits(), regs.rsp, 0, 0, 0, 0, 0, 0, 0]
        }
    };
    let mut all = [0; 27];
    all[..15].copy_from_slice(&general);
    all[15..].copy_from_slice(&rest);
    all
}
