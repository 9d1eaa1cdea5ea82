//! The kernel itself: `cargo run` runs it in ringfence.

#![no_std]
#![no_main]

use ringfence_guest::{PASSED, exit, print_text};
use rust_kernel::allocator::Pages;

rust_kernel::entry!(main);

fn main() -> ! {
    let mut pages = Pages::new(0x20_0000, 16);
    if pages.allocate().is_some() {
        print_text("hello from a kernel in Rust\n");
    }
    exit(PASSED)
}
