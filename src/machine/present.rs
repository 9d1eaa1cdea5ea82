//! What there is of a machine at present, for those who look at it from another thread while
//! it runs: a reset replaces all of it.
//!
//! Called by [`super::Machine`], which keeps it true, and read by debuggers and the control
//! socket.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Machine;
use crate::kvm::Vm;
use crate::mem::GuestMemory;
use crate::vcpu::Counts;

/// One incarnation, and what those before it counted.
pub(super) struct Incarnated {
    pub(super) memory: GuestMemory,
    pub(super) vm: Arc<Vm>,
    pub(super) counts: Counts,
    pub(super) restarts: u64,
}

/// The present one.
pub(super) struct Present(Mutex<Incarnated>);

impl Present {
    /// Never held while another lock is taken.
    pub(super) fn lock(&self) -> MutexGuard<'_, Incarnated> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine {
    /// Lets somebody look, from now on.
    pub(super) fn share(&mut self) -> Arc<Present> {
        let present = self.incarnated();
        self.present.get_or_insert_with(|| Arc::new(Present(Mutex::new(present)))).clone()
    }

    /// Tells whoever looks of a restart.
    pub(super) fn share_again(&self) {
        if let Some(present) = &self.present {
            *present.lock() = self.incarnated();
        }
    }

    fn incarnated(&self) -> Incarnated {
        let (memory, vm) = (self.incarnation.memory.clone(), self.incarnation.vm.clone());
        Incarnated { memory, vm, counts: self.counts.clone(), restarts: self.restarts }
    }
}
