//! What CPUID may show the guest: the changes made to what KVM offers.
//!
//! Called by `machine` with the leaves that KVM supports; pure data in, data out.

/// One leaf of CPUID, as KVM's `kvm_cpuid_entry2` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the registers' own names
pub struct Leaf {
    pub function: u32,
    pub index: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}
