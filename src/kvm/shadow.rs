//! Shadows of the guest's page tables, on a KVM that runs guests on such instead of in a second
//! level of page tables (EPT, NPT): kvm_pvm, and old processors. Used by `machine` when it puts
//! memory back.
//!
//! KVM sees a guest write to its page tables, but nobody tells it that user space did: the
//! shadows made since the checkpoint have to go. Taking any memory slot away drops them all.
//! That takes two ioctls that wait for readers, so it is done only where there are new ones.

use super::slots::Slot;
use super::stats::Counter;
use super::{Backend, Error, Vcpu, Vm};
use crate::mem::{GuestMemoryBackend, PAGE_SIZE, layout};

/// The counter of entries made in shadows (Linux, arch/x86/include/asm/kvm_host.h).
const ENTRIES: &str = "pf_fixed";

/// The shadows of a VM.
#[derive(Debug)]
pub struct Shadows {
    /// One a vCPU; none where KVM does not count.
    entries: Option<Vec<Counter>>,
    /// Their sum when there were last no new shadows.
    seen: u64,
}

impl Shadows {
    /// Watches from now on; `None` where KVM makes no shadows.
    pub fn watch<'v>(vcpus: impl Iterator<Item = &'v Vcpu>) -> Option<Self> {
        if Backend::detect().has_second_level() {
            return None;
        }
        let entries = vcpus.map(|vcpu| Counter::find(&vcpu.fd, ENTRIES)).collect();
        let mut shadows = Self { entries, seen: 0 };
        shadows.seen = shadows.sum().unwrap_or(0);
        Some(shadows)
    }

    fn sum(&self) -> Option<u64> {
        self.entries.as_ref()?.iter().map(Counter::value).sum()
    }

    /// Drops all shadows if there may be some that are of guest memory as it was before user
    /// space wrote to it. No vCPU runs.
    pub fn drop_stale(&mut self, vm: &Vm) -> Result<(), Error> {
        let sum = self.sum();
        if sum == Some(self.seen) {
            return Ok(());
        }
        self.seen = sum.unwrap_or(0);
        vm.drop_shadows()
    }
}

impl Vm {
    fn drop_shadows(&self) -> Result<(), Error> {
        let Some(region) = self.memory.iter().next() else { return Ok(()) };
        let host = region.as_ptr() as u64;
        let slot = Slot { start: layout::SPARE_PAGE, len: PAGE_SIZE, host, read_only: false };
        self.set_slot(SPARE_SLOT, &slot, 0)?;
        self.set_slot(SPARE_SLOT, &Slot { len: 0, ..slot }, 0)
    }
}

/// A slot that is there only for its going. KVM has room for 32764 at least.
const SPARE_SLOT: u32 = 32_000;
