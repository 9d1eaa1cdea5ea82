//! How a bare-metal guest in Rust takes part in "boot once, test many": `no_std`, no dependency.
//!
//! ```ignore
//! ringfence_guest::tests! {
//!     fn addition() { assert!(1 + 1 == 2); }
//!     fn heap() { assert!(kernel::allocate(4096).is_some()); }
//! }
//!
//! extern "C" fn kernel_main() -> ! {
//!     kernel::start();                 // once: each test gets a copy of the machine as it is then
//!     ringfence_guest::run_tests(TESTS)
//! }
//! ```
//!
//! The kernel's panic handler prints and calls [`exit`] with [`FAILED`]. `ringfence test IMAGE`
//! boots the kernel once a processor, takes a checkpoint where it is [`ready`], and puts the
//! machine back to it for each test. Where nobody listens ([`mailbox`]) all tests run one after
//! the other, and the first panic ends them.

#![no_std]

use core::arch::asm;
use core::fmt;

/// The verdict of a test that passed.
pub const PASSED: u32 = 0;
/// The verdict of one that failed; any other number is a failure too.
pub const FAILED: u32 = 1;
/// The verdict of one that cannot run here.
pub const SKIPPED: u32 = 77;

/// OUT: a byte of a test's name, a NUL ends it. IN: `M` where there is a mailbox.
const ANNOUNCE: u16 = 0x5E0;
/// OUT: the machine takes its checkpoint behind this instruction.
const READY: u16 = 0x5E1;
/// IN, 16 bits: the number of the test to run.
const NEXT: u16 = 0x5E2;
/// OUT: the verdict.
const EXIT: u16 = 0xF4;
/// COM1, and its line status register with the bit "transmitter empty".
const SERIAL: u16 = 0x3F8;
const LINE_STATUS: u16 = SERIAL + 5;
const EMPTY: u8 = 0x20;

/// By this a runner knows the image of a guest that takes part.
#[used]
static MARKER: [u8; 19] = *b"ringfence-mailbox-1";

/// A test: it passes where it returns.
pub struct Test {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub run: fn(),
}

/// Defines tests, and `TESTS`, the table of them: `tests! { fn name() { ... } ... }`.
#[macro_export]
macro_rules! tests {
    ($($(#[$attribute:meta])* fn $name:ident() $body:block)*) => {
        $($(#[$attribute])* fn $name() $body)*
        /// Every test.
        pub static TESTS: &[$crate::Test] =
            &[$($crate::Test { name: stringify!($name), run: $name }),*];
    };
}

/// Announces the tests, runs the one that is asked for, and ends the machine with its verdict.
pub fn run_tests(tests: &[Test]) -> ! {
    if mailbox() {
        for test in tests {
            announce(test.name);
        }
        ready();
        if let Some(test) = next().and_then(|number| tests.get(number)) {
            (test.run)();
            exit(PASSED)
        }
    }
    for test in tests {
        print_text("test ");
        print_text(test.name);
        print_text(" ... ");
        (test.run)();
        print_text("ok\n");
    }
    exit(PASSED)
}

/// Is there a runner's mailbox?
pub fn mailbox() -> bool {
    in8(ANNOUNCE) == b'M'
}

/// Makes a test known: 1 to 255 bytes without control characters, each name once, at most 4096 of them.
pub fn announce(name: &str) {
    for byte in name.bytes().chain([0]) {
        out8(ANNOUNCE, byte);
    }
}

/// Everything is started. Behind this call each test begins, in a copy of the machine of its own.
pub fn ready() {
    out8(READY, 1);
}

/// The number of the test to run, in the order of announcing; `None`: run them all.
pub fn next() -> Option<usize> {
    let number: u16;
    // SAFETY: reading this port has no effect on the guest's memory.
    unsafe { asm!("in ax, dx", in("dx") NEXT, out("ax") number, options(nomem, nostack)) };
    (number != u16::MAX).then_some(number.into())
}

/// Ends the machine with this verdict.
pub fn exit(verdict: u32) -> ! {
    // SAFETY: the machine ends here; where nothing listens, the processor stops.
    unsafe {
        asm!("out dx, eax", "2:", "cli", "hlt", "jmp 2b", in("dx") EXIT, in("eax") verdict, options(noreturn))
    }
}

/// Prints on COM1, polled.
pub fn print_text(text: &str) {
    for byte in text.bytes() {
        while in8(LINE_STATUS) & EMPTY == 0 {}
        out8(SERIAL, byte);
    }
}

/// Prints a number, without the formatting of `core`, which may use SSE.
pub fn print_number(number: u64) {
    if number >= 10 {
        print_number(number / 10);
    }
    while in8(LINE_STATUS) & EMPTY == 0 {}
    out8(SERIAL, b'0' + (number % 10) as u8);
}

/// COM1, for `write!`.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        print_text(text);
        Ok(())
    }
}

/// Prints on COM1.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($crate::Serial, $($argument)*);
    }};
}

fn in8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: none of the ports above touches the guest's memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

fn out8(port: u16, value: u8) {
    // SAFETY: as above; READY is a barrier for what was written before it.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) };
}
