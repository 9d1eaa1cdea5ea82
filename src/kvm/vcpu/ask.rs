//! What a vCPU that stands still can be asked beside its registers: for debuggers and
//! autopsies, never on the exit path.

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use serde::Serialize;

use super::{Error, Vcpu, convert};
use crate::kvm::{Exit, decode};
use crate::x86::{Regs, Rflags};

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
}

impl Vcpu {
    /// Why KVM_RUN came back the last time. An error of KVM_RUN's own is not kept.
    pub fn last_exit(&mut self) -> Exit<'_> {
        decode(self.page())
    }

    /// The general registers and flags as of the exit before the last one.
    pub fn previous_registers(&self) -> (Regs, Rflags) {
        (convert::from_regs(&self.previous), Rflags::from_bits_retain(self.previous.rflags))
    }

    /// The general registers and flags as of the last exit, which cost no ioctl.
    pub fn last_registers(&mut self) -> (Regs, Rflags) {
        let regs = self.synced().regs;
        (convert::from_regs(&regs), Rflags::from_bits_retain(regs.rflags))
    }

    /// The bits of its physical addresses (CPUID 0x80000008; 36 where it has no such leaf).
    pub fn physical_bits(&self) -> Result<u32, Error> {
        let cpuid = self.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.map_err(Error::ioctl("KVM_GET_CPUID2"))?;
        let leaf = cpuid.as_slice().iter().find(|leaf| leaf.function == 0x8000_0008);
        Ok(leaf.map_or(36, |leaf| leaf.eax & 0xFF).clamp(32, 52))
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

    /// What is on its way into the guest.
    pub fn events(&self) -> Result<Events, Error> {
        let events = self.fd.get_vcpu_events().map_err(Error::ioctl("KVM_GET_VCPU_EVENTS"))?;
        Ok(Events {
            exception: (events.exception.injected != 0).then_some(events.exception.nr),
            interrupt: (events.interrupt.injected != 0).then_some(events.interrupt.nr),
            nmi: events.nmi.injected != 0,
        })
    }
}
