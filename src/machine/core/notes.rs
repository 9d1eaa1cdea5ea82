//! The registers in a core: one NT_PRSTATUS a vCPU (Linux, include/linux/elfcore.h).

use crate::inspect::{Cpu, Registers};
use crate::x86::Regs;

const NT_PRSTATUS: u32 = 1;
/// `struct elf_prstatus` of x86-64.
const PRSTATUS: usize = 336;
/// Where its signal, process number and registers lie.
const SIGNAL: usize = 12;
const PROCESS: usize = 32;
const REGISTERS: usize = 112;
/// What a debugger shows of a processor that died.
const SIGSEGV: u16 = 11;

/// All notes; the vCPU that died comes first, because a debugger begins there.
pub(super) fn notes(cpus: &[Cpu]) -> Vec<u8> {
    let (died, others): (Vec<_>, Vec<_>) = cpus.iter().partition(|cpu| cpu.died);
    died.into_iter().chain(others).flat_map(note).collect()
}

fn note(cpu: &Cpu) -> Vec<u8> {
    let mut status = vec![0; PRSTATUS];
    if cpu.died {
        status[SIGNAL..SIGNAL + 2].copy_from_slice(&SIGSEGV.to_le_bytes());
    }
    // Number 0 is no process.
    status[PROCESS..PROCESS + 4].copy_from_slice(&(cpu.id + 1).to_le_bytes());
    for (n, value) in registers(&cpu.registers).into_iter().enumerate() {
        let at = REGISTERS + 8 * n;
        status[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let mut note = 5_u32.to_le_bytes().to_vec(); // the name's bytes, with its NUL
    note.extend((PRSTATUS as u32).to_le_bytes());
    note.extend(NT_PRSTATUS.to_le_bytes());
    note.extend(b"CORE\0\0\0\0");
    note.extend(status);
    note
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
