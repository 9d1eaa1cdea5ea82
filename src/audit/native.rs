//! What the same instructions show a program of the host's: this one. Called when an audit
//! begins, on its thread. A child process executes those that a kernel may forbid.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _rdtsc};
use std::io::Read;
use std::os::fd::FromRawFd;
use std::{fs::File, mem, ptr};

use super::ground;
use crate::x86::cpuid::Leaf;

/// What the host shows to its own programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Native {
    /// SGDT: limit, base.
    pub gdtr: [u8; 16],
    /// SIDT.
    pub idtr: [u8; 16],
    /// SLDT.
    pub ldtr: u64,
    /// STR.
    pub task: u64,
    /// SMSW with a 32-bit operand: CR0, where the kernel lets it through.
    pub cr0: u64,
    /// PUSHF.
    pub flags: u64,
    /// CS.
    pub cs: u64,
    /// FS.
    pub fs: u64,
    /// LAR of the guest's selector LIMITED, 0 where it has no answer.
    pub rights: u64,
    /// LSL of it.
    pub limit: u64,
    /// VERW of it.
    pub writable: u64,
    /// VERR of BEYOND.
    pub readable: u64,
    /// XGETBV of XCR0; 0 where it is not there.
    pub xcr0: u64,
    /// RDPKRU; all ones where it is not there.
    pub pkru: u64,
    /// TSC_AUX, by RDTSCP.
    pub aux: u64,
}

/// CPUID leaf 1, ECX: XGETBV is on.
const OSXSAVE: u32 = 1 << 27;
/// CPUID leaf 0x80000001, EDX.
const RDTSCP: u32 = 1 << 27;
/// CPUID leaf 7, ECX: RDPKRU is on.
const OSPKE: u32 = 1 << 4;

impl Native {
    /// Looks. `None` where the host lets no program look (its kernel ended the child).
    pub fn look() -> Option<Self> {
        let mut pipe = [0; 2];
        // SAFETY: the array takes the two descriptors.
        if unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return None;
        }
        // SAFETY: the child only executes instructions and makes system calls: it allocates
        // nothing and takes no lock, which another thread might have held at the fork.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let seen = execute();
            // SAFETY: `seen` is made of integers without padding; the descriptor is open.
            unsafe {
                libc::write(pipe[1], ptr::from_ref(&seen).cast(), size_of::<Self>());
                libc::_exit(0);
            }
        }
        // SAFETY: both descriptors are open and nobody else owns them.
        let (mut from, to) = unsafe { (File::from_raw_fd(pipe[0]), File::from_raw_fd(pipe[1])) };
        drop(to);
        let mut bytes = [0; size_of::<Self>()];
        let read = child > 0 && from.read_exact(&mut bytes).is_ok();
        if child > 0 {
            // SAFETY: the child is this process's own; nobody asks for its status.
            unsafe { libc::waitpid(child, ptr::null_mut(), 0) };
        }
        // SAFETY: every bit pattern is a Native, an array of integers of the same size.
        read.then(|| unsafe { mem::transmute::<[u8; size_of::<Self>()], Self>(bytes) })
    }
}

/// Executes them all.
fn execute() -> Native {
    let mut native = Native { pkru: u64::MAX, ..Native::default() };
    let limited = u64::from(ground::LIMITED | 3);
    let beyond = u64::from(ground::BEYOND | 3);
    let (mut writable, mut readable): (u8, u8);
    // SAFETY: they store into locals of the size that they write, read registers that programs
    // may read, or leave the flags changed, which asm! is told of by default. Where a kernel
    // forbids one it ends this process, which is the child.
    unsafe {
        asm!("sgdt [{}]", in(reg) &mut native.gdtr);
        asm!("sidt [{}]", in(reg) &mut native.idtr);
        asm!("sldt {0:e}", out(reg) native.ldtr);
        asm!("str {0:e}", out(reg) native.task);
        asm!("smsw {0:e}", out(reg) native.cr0);
        asm!("pushfq", "pop {}", out(reg) native.flags);
        asm!("mov {0:e}, cs", out(reg) native.cs);
        asm!("mov {0:e}, fs", out(reg) native.fs);
        asm!("lar {0:e}, {1:e}", inout(reg) native.rights, in(reg) limited);
        asm!("lsl {0:e}, {1:e}", inout(reg) native.limit, in(reg) limited);
        asm!("verw {1:x}", "setz {0}", out(reg_byte) writable, in(reg) limited);
        asm!("verr {1:x}", "setz {0}", out(reg_byte) readable, in(reg) beyond);
    }
    (native.writable, native.readable) = (writable.into(), readable.into());
    extended(&mut native);
    native
}

/// Those that not every processor has.
fn extended(native: &mut Native) {
    let (low, high): (u32, u32);
    if cpuid(1, 0).ecx & OSXSAVE != 0 {
        // SAFETY: the bit says that programs may read XCR0.
        unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) };
        native.xcr0 = u64::from(high) << 32 | u64::from(low);
    }
    if cpuid(0, 0).eax >= 7 && cpuid(7, 0).ecx & OSPKE != 0 {
        // SAFETY: the bit says that programs may read PKRU.
        unsafe { asm!("rdpkru", in("ecx") 0, out("eax") native.pkru, out("edx") _) };
    }
    if cpuid(0x8000_0001, 0).edx & RDTSCP != 0 {
        // SAFETY: the bit says that the instruction is there, and Linux lets programs use it.
        unsafe { asm!("rdtscp", out("ecx") native.aux, out("eax") _, out("edx") _) };
    }
}

/// CPUID as the host shows it to its programs.
pub fn cpuid(function: u32, index: u32) -> Leaf {
    let seen = __cpuid_count(function, index);
    Leaf { function, index, eax: seen.eax, ebx: seen.ebx, ecx: seen.ecx, edx: seen.edx }
}

/// The host's time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has it, and Linux lets programs read it.
    unsafe { _rdtsc() }
}

/// Keeps this thread on the last of the processors that it may use: its number is then not 0,
/// where there is more than one, and cannot be taken for a register that is zero. Gives that
/// number back.
pub fn pin() -> usize {
    // SAFETY: all zero is an empty set; both calls take its size, and the set outlives them.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        let size = size_of_val(&set);
        if libc::sched_getaffinity(0, size, &mut set) != 0 {
            return 0;
        }
        let last = (0..libc::CPU_SETSIZE as usize).rev().find(|cpu| libc::CPU_ISSET(*cpu, &set));
        let Some(last) = last else { return 0 };
        libc::CPU_ZERO(&mut set);
        libc::CPU_SET(last, &mut set);
        libc::sched_setaffinity(0, size, &set);
        last
    }
}
