//! A kernel of a hundred lines: an entry, a panic handler, and something to test.

#![no_std]

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

use ringfence_guest::{FAILED, exit, print_number, print_text};

pub mod allocator;

/// Bytes of the stack.
const STACK: usize = 64 << 10;

// Long mode; the kernel turns SSE on, which `core` was compiled for.
global_asm!(
    ".globl _start",
    "_start:",
    "lea rsp, [{stack} + {size}]",
    "xor ebp, ebp",
    "mov rax, cr4",
    "or rax, 0x600", // OSFXSR, OSXMMEXCPT
    "mov cr4, rax",
    "call kernel_main",
    "ud2",
    stack = sym STACK_AREA,
    size = const STACK,
);

#[repr(C, align(16))]
struct StackArea([u8; STACK]);

static mut STACK_AREA: StackArea = StackArea([0; STACK]);

/// Names the function that runs on the stack above, and starts what the kernel has.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn kernel_main() -> ! {
            $main()
        }
    };
}

/// Where, and then what: the text of a panic may need what this processor lacks.
#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    print_text("panicked");
    if let Some(place) = info.location() {
        print_text(" at ");
        print_text(place.file());
        print_text(":");
        print_number(place.line().into());
    }
    print_text(": ");
    match info.message().as_str() {
        Some(text) => print_text(text),
        None => ringfence_guest::println!("{}", info.message()),
    }
    print_text("\n");
    exit(FAILED)
}

/// `core` names it where it was compiled to unwind; nothing here does.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") count => _)
    };
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: the caller's; what is read lies ahead of what is written.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: the caller's; from the end on, for the areas overlap. `count` is not 0.
    unsafe {
        asm!(
            "std", "rep movsb", "cld",
            inout("rdi") to.add(count - 1) => _, inout("rsi") from.add(count - 1) => _, inout("rcx") count => _
        );
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") count => _)
    };
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    for i in 0..count {
        // SAFETY: the caller's.
        let (a, b) = unsafe { (*a.add(i), *b.add(i)) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// Asks for the compiler's own runtime, which writes files; ringfence reads the counters itself.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
static __llvm_profile_runtime: i32 = 0;
