//! What a vCPU that stands still can be asked beside its registers: for debuggers and
//! autopsies, never on the exit path.

use std::arch::x86_64::__cpuid;

use serde::Serialize;

use super::{Error, Vcpu, general};
use crate::kvm::Backend;
use crate::x86::{PagingFeatures, Regs, Rflags};

/// The interrupts that its local APIC holds (Intel SDM Vol. 3A 11.8.4).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LocalApic {
    /// Vectors that wait (the interrupt request register).
    pub pending: Vec<u8>,
    /// Vectors whose handlers have not said that they are done (the in-service register).
    pub in_service: Vec<u8>,
    /// Vectors at or below this one's class wait.
    pub task_priority: u8,
    /// Is it on, by its spurious-interrupt vector register?
    pub enabled: bool,
}

/// What is on its way into the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Events {
    /// An exception that was to be delivered.
    pub exception: Option<u8>,
    /// An interrupt that was to be delivered.
    pub interrupt: Option<u8>,
    /// A non-maskable interrupt was to be delivered.
    pub nmi: bool,
    /// They are held back, as while one is delivered or handled.
    #[serde(skip)]
    pub nmis_masked: bool,
}

/// The guest's own debug registers (Intel SDM Vol. 3B 18.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugRegisters {
    /// DR0 to DR3: linear addresses.
    pub addresses: [u64; 4],
    /// DR6: what the last debug exceptions were raised for.
    pub dr6: u64,
    /// DR7: what is watched for.
    pub dr7: u64,
}

impl Vcpu {
    /// The general registers and flags as of the exit before the last one.
    pub fn previous_registers(&self) -> (Regs, Rflags) {
        self.previous
    }

    /// The general registers and flags as of the last exit, which cost no ioctl.
    pub fn last_registers(&mut self) -> (Regs, Rflags) {
        general(&self.synced().regs)
    }

    /// What its page tables can be. A processor that walks them itself goes by its own CPUID:
    /// what the guest is not told of pages of 1 GiB is not kept from it then (Linux,
    /// arch/x86/kvm/cpuid.c, kvm_vcpu_after_set_cpuid).
    pub(super) fn paging_features(&self) -> Result<PagingFeatures, Error> {
        if let Some(known) = self.paging_features.get() {
            return Ok(*known);
        }
        let mut features = PagingFeatures::of(&self.cpuid()?);
        let host = __cpuid(0x8000_0001).edx >> 26 & 1 != 0;
        features.gigabyte_pages |= host && Backend::detect().has_second_level();
        Ok(*self.paging_features.get_or_init(|| features))
    }

    /// Its local APIC, where it has one in KVM.
    pub fn local_apic(&self) -> Result<Option<LocalApic>, Error> {
        if !self.local_apic {
            return Ok(None);
        }
        let state = self.fd.get_lapic().map_err(Error::ioctl("KVM_GET_LAPIC"))?;
        let byte = |at: usize| state.regs[at] as u8;
        // 256 bits in eight registers, 16 bytes apart.
        let vectors = |base: usize| {
            let is_set = |v: &u8| {
                let v = usize::from(*v);
                byte(base + v / 32 * 16 + v % 32 / 8) >> (v % 8) & 1 != 0
            };
            (0..=255).filter(is_set).collect()
        };
        Ok(Some(LocalApic {
            in_service: vectors(0x100),
            pending: vectors(0x200),
            task_priority: byte(0x80),
            enabled: byte(0xF1) & 1 != 0,
        }))
    }

    /// Has it go on elsewhere, by two ioctls. No instruction is half done.
    pub fn set_rip(&self, rip: u64) -> Result<(), Error> {
        let mut regs = self.fd.get_regs().map_err(Error::ioctl("KVM_GET_REGS"))?;
        regs.rip = rip;
        self.fd.set_regs(&regs).map_err(Error::ioctl("KVM_SET_REGS"))
    }

    /// The guest's own debug registers.
    pub fn debug_registers(&self) -> Result<DebugRegisters, Error> {
        let kvm = self.fd.get_debug_regs().map_err(Error::ioctl("KVM_GET_DEBUGREGS"))?;
        Ok(DebugRegisters { addresses: kvm.db, dr6: kvm.dr6, dr7: kvm.dr7 })
    }

    /// What is on its way into the guest.
    pub fn events(&self) -> Result<Events, Error> {
        let events = self.fd.get_vcpu_events().map_err(Error::ioctl("KVM_GET_VCPU_EVENTS"))?;
        Ok(Events {
            exception: (events.exception.injected != 0).then_some(events.exception.nr),
            interrupt: (events.interrupt.injected != 0).then_some(events.interrupt.nr),
            nmi: events.nmi.injected != 0 || events.nmi.pending != 0,
            nmis_masked: events.nmi.masked != 0,
        })
    }
}
