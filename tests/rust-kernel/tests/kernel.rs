//! The kernel's tests: `cargo test` boots this once and runs each in a copy of the machine.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use rust_kernel::allocator::{PAGE, Pages};

static COUNT: AtomicU32 = AtomicU32::new(0);

ringfence_guest::tests! {
    fn pages_come_lowest_first() {
        let mut pages = Pages::new(0x20_0000, 4);
        assert!(pages.allocate() == Some(0x20_0000));
        assert!(pages.allocate() == Some(0x20_0000 + PAGE));
    }

    fn pages_run_out() {
        let mut pages = Pages::new(0, 2);
        assert!(pages.allocate().is_some() && pages.allocate().is_some());
        assert!(pages.allocate().is_none());
    }

    fn a_page_that_was_freed_comes_again() {
        let mut pages = Pages::new(0x1000, 8);
        let first = pages.allocate();
        assert!(pages.free(0x1000));
        assert!(pages.allocate() == first && pages.left() == 7);
    }

    fn nothing_is_freed_twice() {
        let mut pages = Pages::new(0, 1);
        pages.allocate();
        assert!(pages.free(0));
        assert!(!pages.free(0));
    }

    fn one_test_counts() {
        assert!(COUNT.fetch_add(1, Ordering::Relaxed) == 0);
    }

    fn and_the_next_starts_from_zero() {
        assert!(COUNT.fetch_add(1, Ordering::Relaxed) == 0);
    }
}

rust_kernel::entry!(main);

fn main() -> ! {
    ringfence_guest::run_tests(TESTS)
}
