//! The capabilities that ringfence uses, as one table, and what a host offers of them.
//!
//! [`Kvm::open`] insists on the required ones; `inspect::doctor` shows them all.

use std::path::Path;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_CAP_BINARY_STATS_FD, KVM_CAP_EXIT_HYPERCALL, KVM_CAP_EXT_CPUID, KVM_CAP_IMMEDIATE_EXIT,
    KVM_CAP_IRQCHIP, KVM_CAP_MAX_VCPUS, KVM_CAP_MP_STATE, KVM_CAP_PIT2, KVM_CAP_SET_GUEST_DEBUG,
    KVM_CAP_SET_TSS_ADDR, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_SYNC_REGS, KVM_CAP_TSC_DEADLINE_TIMER,
    KVM_CAP_USER_MEMORY, KVM_CAP_VCPU_EVENTS, KVM_CAP_X86_USER_SPACE_MSR,
};

use super::{Error, Kvm, Vm};

/// A capability of KVM's that ringfence uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    pub(super) number: u32,
    /// Its name in the KVM API.
    pub name: &'static str,
    /// Nothing runs without it.
    pub required: bool,
    /// What is lost without it.
    pub without: &'static str,
}

macro_rules! capability {
    ($cap:ident, $required:expr, $without:expr) => {
        Capability { number: $cap, name: stringify!($cap), required: $required, without: $without }
    };
}

/// All of them; a row each.
pub const CAPABILITIES: &[Capability] = &[
    capability!(KVM_CAP_USER_MEMORY, true, "guests have no memory"),
    capability!(KVM_CAP_EXT_CPUID, true, "guests cannot be told what processor they have"),
    capability!(KVM_CAP_IMMEDIATE_EXIT, true, "a guest cannot be stopped without a race"),
    capability!(KVM_CAP_SYNC_REGS, true, "registers cost a system call at every exit"),
    capability!(KVM_CAP_SET_TSS_ADDR, true, "VT-x has no place for what real mode needs"),
    capability!(KVM_CAP_MP_STATE, false, "a guest that halts for ever runs into --timeout instead"),
    capability!(KVM_CAP_IRQCHIP, false, "no --irqchip full: no interrupts but a guest's own"),
    capability!(KVM_CAP_SPLIT_IRQCHIP, false, "no --irqchip split"),
    capability!(KVM_CAP_PIT2, false, "no --irqchip full: there is no timer at port 0x40"),
    capability!(KVM_CAP_TSC_DEADLINE_TIMER, false, "guests use slower modes of the APIC timer"),
    capability!(
        KVM_CAP_X86_USER_SPACE_MSR,
        false,
        "accesses to unknown MSRs are not counted in the report"
    ),
    capability!(
        KVM_CAP_EXIT_HYPERCALL,
        false,
        "VMCALL and VMMCALL do not reach ringfence; hypercalls by port do"
    ),
    capability!(KVM_CAP_SET_GUEST_DEBUG, false, "no breakpoints and no single steps in guests"),
    capability!(KVM_CAP_VCPU_EVENTS, false, "exceptions that wait to be delivered stay hidden"),
    capability!(KVM_CAP_BINARY_STATS_FD, false, "the kernel's own counters cannot be read"),
    capability!(KVM_CAP_MAX_VCPUS, false, "a VM has room for four processors at most"),
];

/// What a KVM offers.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Every row of [`CAPABILITIES`] with KVM's answer: 0 for no, 1 or a number for yes.
    pub capabilities: Vec<(Capability, i32)>,
    /// How long it took to make a VM.
    pub vm_took: Duration,
}

/// Asks the KVM behind a device node what it offers, and has it make a VM.
pub fn offer(path: &Path) -> Result<Offer, Error> {
    let kvm = Kvm::open_any(path)?;
    let answer = |cap: &Capability| (*cap, kvm.fd.check_extension_raw(cap.number.into()));
    let capabilities = CAPABILITIES.iter().map(answer).collect();
    let began = Instant::now();
    drop(Vm::create(&kvm)?);
    Ok(Offer { capabilities, vm_took: began.elapsed() })
}
