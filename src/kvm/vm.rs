//! A VM: its memory slots, interrupt controllers and what it asks user space about.

use std::fmt;
use std::io;

use kvm_bindings::{
    CpuId, KVM_CAP_EXIT_HYPERCALL, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X86_USER_SPACE_MSR,
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::slots::{Guarded, slots};
use super::stats::{Stat, read_stats};
use super::{Error, Kvm, Vcpu};
use crate::irq::{Gsi, Irqchip};
use crate::mem::{GuestMemory, layout};
use crate::x86::cpuid::{Leaf, Policy};

/// The KVM hypercall that can be passed on to user space (KVM_HC_MAP_GPA_RANGE).
pub(super) const HC_MAP_GPA_RANGE: u64 = 12;

/// A VM.
pub struct Vm {
    fd: VmFd,
    /// Keeps the memory that KVM's slots point at mapped for as long as the VM.
    memory: GuestMemory,
    irqchip: Irqchip,
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
}

impl SupportedCpuid {
    /// Asks KVM. Slow (about a millisecond on some hosts): call it beside other work.
    pub fn ask(kvm: &Kvm) -> Result<Self, Error> {
        let leaves = kvm
            .fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::ioctl("KVM_GET_SUPPORTED_CPUID"))?;
        let tsc_deadline = kvm.fd.check_extension(Cap::TscDeadlineTimer);
        Ok(Self { leaves, tsc_deadline })
    }

    /// Can KVM's local APIC do the TSC deadline timer?
    pub fn tsc_deadline(&self) -> bool {
        self.tsc_deadline
    }

    /// The leaves as the guest's vCPU is to see them.
    pub(super) fn adjusted(&self, policy: &Policy) -> CpuId {
        let mut cpuid = self.leaves.clone();
        for entry in cpuid.as_mut_slice() {
            let mut leaf = Leaf {
                function: entry.function,
                index: entry.index,
                eax: entry.eax,
                ebx: entry.ebx,
                ecx: entry.ecx,
                edx: entry.edx,
            };
            policy.adjust(&mut leaf);
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx);
        }
        cpuid
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
        let fd = Self::create(kvm)?;
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
            let region = kvm_userspace_memory_region {
                slot: number as u32,
                flags: if slot.read_only { KVM_MEM_READONLY } else { 0 },
                guest_phys_addr: slot.start,
                memory_size: slot.len,
                userspace_addr: slot.host,
            };
            // SAFETY: the range is part of a mapping of ours, and `self.memory` keeps it mapped
            // for as long as the VM's file descriptor is open; the slots do not overlap.
            unsafe { self.fd.set_user_memory_region(region) }
                .map_err(Error::ioctl("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
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

    fn enable_if_known(&self, cap: u32, arg: u64, name: &'static str) -> Result<(), Error> {
        if self.fd.check_extension_raw(cap.into()) <= 0 {
            log::debug!("this KVM has no {name}");
            return Ok(());
        }
        self.enable(cap, arg).map_err(Error::ioctl(name))
    }

    fn enable(&self, cap: u32, arg: u64) -> Result<(), kvm_ioctls::Error> {
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

    /// An event that raises `gsi` when it is written to.
    pub fn irq_event(&self, gsi: Gsi) -> Result<EventFd, Error> {
        let refused = |source: io::Error| Error::Ioctl { ioctl: "KVM_IRQFD", source };
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(refused)?;
        self.fd.register_irqfd(&event, gsi.0).map_err(Error::ioctl("KVM_IRQFD"))?;
        Ok(event)
    }
}
