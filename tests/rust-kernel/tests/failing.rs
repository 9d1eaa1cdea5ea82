//! Tests that fail and die, for ringfence's own tests: with `--features failing` only.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

static SUM: AtomicU32 = AtomicU32::new(2);

ringfence_guest::tests! {
    fn passes() {}

    fn fails() {
        assert!(SUM.load(Ordering::Relaxed) == 3, "arithmetic is broken");
    }

    fn dies() {
        // SAFETY: there is no IDT: the machine ends here.
        unsafe { core::arch::asm!("ud2") };
    }

    fn passes_after_all_that() {}
}

rust_kernel::entry!(main);

fn main() -> ! {
    ringfence_guest::run_tests(TESTS)
}
