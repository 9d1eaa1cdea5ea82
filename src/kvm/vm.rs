//! A VM: its memory slots, interrupt controllers and what it asks user space about.

use std::fmt;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_EXIT_HYPERCALL, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X86_USER_SPACE_MSR,
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, KVM_PIT_SPEAKER_DUMMY, kvm_cpuid_entry2, kvm_enable_cap,
    kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, VmFd};

use super::slots::{Guarded, Slot, slots};
use super::stats::{Stat, read_stats};
use super::{Error, Kvm, Vcpu, hyperv};
use crate::irq::{Gsi, IrqInputs, Irqchip, NotConnected};
use crate::mem::{GuestMemory, layout};
use crate::x86::Model;
use crate::x86::cpuid::{Leaf, Policy};

/// The KVM hypercall that can be passed on to user space (KVM_HC_MAP_GPA_RANGE).
pub(super) const HC_MAP_GPA_RANGE: u64 = 12;

/// A VM.
pub struct Vm {
    pub(super) fd: Arc<VmFd>,
    /// Keeps the memory that KVM's slots point at mapped for as long as the VM.
    pub(super) memory: GuestMemory,
    pub(super) irqchip: Irqchip,
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm").field("irqchip", &self.irqchip).finish_non_exhaustive()
    }
}

/// The CPUID leaves that KVM can give a guest.
pub struct SupportedCpuid {
    leaves: CpuId,
    tsc_deadline: bool,
    /// Hyper-V's, for a guest that is to have them.
    hyperv: Vec<kvm_cpuid_entry2>,
}

impl SupportedCpuid {
    /// Asks KVM. Slow (about a millisecond on some hosts): call it beside other work.
    pub fn ask(kvm: &Kvm) -> Result<Self, Error> {
        let leaves = kvm
            .fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::ioctl("KVM_GET_SUPPORTED_CPUID"))?;
        let tsc_deadline = kvm.fd.check_extension(Cap::TscDeadlineTimer);
        Ok(Self { leaves, tsc_deadline, hyperv: Vec::new() })
    }

    /// With Hyper-V's interface. False where this KVM has none.
    pub fn add_hyperv(&mut self, kvm: &Kvm) -> Result<bool, Error> {
        self.hyperv = hyperv::leaves(kvm)?;
        Ok(!self.hyperv.is_empty())
    }

    /// Has it Hyper-V's interface?
    pub(super) fn has_hyperv(&self) -> bool {
        !self.hyperv.is_empty()
    }

    /// Can KVM's local APIC do the TSC deadline timer?
    pub fn tsc_deadline(&self) -> bool {
        self.tsc_deadline
    }

    /// The same with `change` applied to every leaf.
    pub fn changed(&self, mut change: impl FnMut(&mut Leaf)) -> Self {
        let mut changed: Vec<_> = self.leaves.as_slice().iter().map(leaf).collect();
        changed.iter_mut().for_each(&mut change);
        let mut leaves = self.leaves.clone();
        overwrite(&mut leaves, &changed);
        Self { leaves, tsc_deadline: self.tsc_deadline, hyperv: self.hyperv.clone() }
    }

    /// The leaves as a vCPU is told to show them.
    pub fn told(&self, policy: &Policy, model: &Model) -> Vec<Leaf> {
        self.shaped(policy, model).0.as_slice().iter().map(leaf).collect()
    }

    /// The leaves as the guest's vCPU is to see them, and what `model` asked for in vain.
    pub(super) fn shaped(&self, policy: &Policy, model: &Model) -> (CpuId, Vec<String>) {
        let mut cpuid = self.leaves.clone();
        let mut leaves: Vec<_> = cpuid.as_slice().iter().map(leaf).collect();
        let missing = model.shape(policy, &mut leaves);
        overwrite(&mut cpuid, &leaves);
        if !self.hyperv.is_empty() {
            cpuid = hyperv::first(&cpuid, &self.hyperv);
        }
        (cpuid, missing)
    }
}

pub(super) fn leaf(entry: &kvm_cpuid_entry2) -> Leaf {
    let &kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, .. } = entry;
    Leaf { function, index, eax, ebx, ecx, edx }
}

/// The leaves by others, in the same order.
fn overwrite(cpuid: &mut CpuId, leaves: &[Leaf]) {
    for (entry, leaf) in cpuid.as_mut_slice().iter_mut().zip(leaves) {
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx);
    }
}

impl Vm {
    /// Makes a VM with this memory. Slots come before the interrupt controllers: after them
    /// each would wait 4 to 8 ms for readers of the in-kernel I/O bus on some hosts.
    pub fn new(
        kvm: &Kvm,
        memory: &GuestMemory,
        irqchip: Irqchip,
        guarded: &[Guarded],
    ) -> Result<Self, Error> {
        let fd = Arc::new(Self::create(kvm)?);
        let vm = Self { fd, memory: memory.clone(), irqchip };
        vm.map_memory(guarded)?;
        // VT-x without "unrestricted guest" runs real mode in a virtual-8086 task of KVM's.
        vm.fd
            .set_tss_address(layout::KVM_TSS as usize)
            .map_err(Error::ioctl("KVM_SET_TSS_ADDR"))?;
        vm.exit_to_user_space()?;
        vm.create_irqchip()?;
        Ok(vm)
    }

    /// An empty VM.
    pub(super) fn create(kvm: &Kvm) -> Result<VmFd, Error> {
        kvm.fd.create_vm().map_err(|e| match e.errno() {
            libc::EBUSY => Error::CreateVm { advice: "another hypervisor (VirtualBox, VMware) holds the processor's virtualisation; stop it", source: e.into() },
            libc::EOPNOTSUPP | libc::ENODEV => Error::CreateVm { advice: "virtualisation is switched off in the firmware", source: e.into() },
            _ => Error::Ioctl { ioctl: "KVM_CREATE_VM", source: e.into() },
        })
    }

    fn map_memory(&self, guarded: &[Guarded]) -> Result<(), Error> {
        for (number, slot) in slots(&self.memory, guarded).iter().enumerate() {
            self.set_slot(number as u32, slot, 0)?;
        }
        Ok(())
    }

    /// Makes a slot, or changes its flags (KVM_MEM_*).
    pub(super) fn set_slot(&self, number: u32, slot: &Slot, flags: u32) -> Result<(), Error> {
        let region = kvm_userspace_memory_region {
            slot: number,
            flags: flags | if slot.read_only { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: slot.start,
            memory_size: slot.len,
            userspace_addr: slot.host,
        };
        // SAFETY: the range is part of a mapping of ours, and `self.memory` keeps it mapped for
        // as long as the VM's file descriptor is open; the slots do not overlap.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(Error::ioctl("KVM_SET_USER_MEMORY_REGION"))
    }

    /// What KVM counted of the VM as a whole; empty where it does not say.
    pub fn stats(&self) -> Vec<Stat> {
        read_stats(&self.fd)
    }

    /// Asks for the exits that are off by default. A kernel that does not know one keeps
    /// its own answer: #GP for an unknown MSR, -KVM_ENOSYS for the hypercall.
    fn exit_to_user_space(&self) -> Result<(), Error> {
        let msr = (KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL).into();
        self.enable_if_known(KVM_CAP_X86_USER_SPACE_MSR, msr, "KVM_CAP_X86_USER_SPACE_MSR")?;
        self.enable_if_known(
            KVM_CAP_EXIT_HYPERCALL,
            1 << HC_MAP_GPA_RANGE,
            "KVM_CAP_EXIT_HYPERCALL",
        )
    }

    pub(super) fn enable_if_known(
        &self,
        cap: u32,
        arg: u64,
        name: &'static str,
    ) -> Result<(), Error> {
        if self.fd.check_extension_raw(cap.into()) <= 0 {
            log::debug!("this KVM has no {name}");
            return Ok(());
        }
        self.enable(cap, arg).map_err(Error::ioctl(name))
    }

    pub(super) fn enable(&self, cap: u32, arg: u64) -> Result<(), kvm_ioctls::Error> {
        self.fd.enable_cap(&kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() })
    }

    fn create_irqchip(&self) -> Result<(), Error> {
        match self.irqchip {
            Irqchip::None => Ok(()),
            // 24 is the number of the I/O APIC's inputs whose routes KVM reserves.
            Irqchip::Split => self
                .enable(KVM_CAP_SPLIT_IRQCHIP, 24)
                .map_err(Error::ioctl("KVM_CAP_SPLIT_IRQCHIP")),
            Irqchip::Full => {
                self.fd.create_irq_chip().map_err(Error::ioctl("KVM_CREATE_IRQCHIP"))?;
                // Port 0x61, where guests calibrate their clocks, comes with the PIT.
                let flags = KVM_PIT_SPEAKER_DUMMY;
                self.fd
                    .create_pit2(kvm_pit_config { flags, ..Default::default() })
                    .map_err(Error::ioctl("KVM_CREATE_PIT2"))
            }
        }
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Which interrupt controllers it has.
    pub fn irqchip(&self) -> Irqchip {
        self.irqchip
    }

    /// Makes vCPU number `id`. Without a local APIC it is ready to run; with one, all but
    /// vCPU 0 wait for INIT and SIPI.
    pub fn create_vcpu(&self, id: u32) -> Result<Vcpu, Error> {
        let fd = self.fd.create_vcpu(id.into()).map_err(Error::ioctl("KVM_CREATE_VCPU"))?;
        Ok(Vcpu::new(fd, self.fd.run_size(), id, self.irqchip != Irqchip::None))
    }

    /// The inputs of its I/O APIC and PICs; where it has none, not connected.
    pub fn irq_inputs(&self) -> Arc<dyn IrqInputs> {
        match self.irqchip {
            Irqchip::Full => Arc::new(Inputs { fd: self.fd.clone(), _memory: self.memory.clone() }),
            Irqchip::None | Irqchip::Split => Arc::new(NotConnected),
        }
    }
}

/// The inputs of the interrupt controllers in KVM.
struct Inputs {
    fd: Arc<VmFd>,
    /// For as long as the VM, as [`Vm::memory`].
    _memory: GuestMemory,
}

impl IrqInputs for Inputs {
    fn set_level(&self, gsi: Gsi, high: bool) {
        if let Err(e) = self.fd.set_irq_line(gsi.0, high) {
            log::debug!("KVM_IRQ_LINE, input {}: {e}", gsi.0); // it has fewer inputs
        }
    }
}
