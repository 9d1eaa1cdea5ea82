//! ringfence: run any bare-metal x86 guest on KVM, and get an honest verdict.

pub mod boot;
pub mod bus;
pub mod config;
pub mod guests;
pub mod devices;
pub mod irq;
pub mod kvm;
pub mod mem;
pub mod vcpu;
pub mod verdict;
pub mod x86;
