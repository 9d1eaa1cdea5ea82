//! ringfence: run any bare-metal x86 guest on KVM, and get an honest verdict.

pub mod boot;
pub mod bus;
pub mod cli;
pub mod config;
pub mod devices;
pub mod guests;
pub mod irq;
pub mod kvm;
pub mod log;
pub mod machine;
pub mod mem;
pub mod vcpu;
pub mod verdict;
pub mod x86;

pub use machine::Machine;
pub use verdict::Verdict;
