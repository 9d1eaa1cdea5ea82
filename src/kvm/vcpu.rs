//! A vCPU: its entry state, its run, what can be asked of it when it stands still.

mod ask;
mod convert;
mod debug;
mod registers;
mod save;

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    KVM_CAP_HYPERV_SYNIC2, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, kvm_enable_cap, kvm_regs,
    kvm_sync_regs,
};
use kvm_ioctls::{SyncReg, VcpuFd};

use super::exit::set_failed;
use super::stats::{Stat, read_stats};
use super::vm::leaf;
use super::{Error, Exit, Kept, SupportedCpuid, decode};
use crate::x86::cpuid::{Leaf, Policy};
use crate::x86::{CpuInit, CpuState, Model, PagingFeatures, Regs, Rflags};
pub use ask::{DebugRegisters, Events, LocalApic};
pub use convert::general;
use convert::{regs, sregs, state};
pub use debug::{Debug, HardwareBreakpoint, HltStep, Inject, WatchKind};

/// A vCPU that is not in KVM_RUN, as its thread sees it.
pub struct Vcpu {
    pub(super) fd: VcpuFd,
    /// Bytes that KVM maps for it: `kvm_run` and what lies behind.
    run_size: usize,
    id: u32,
    local_apic: bool,
    /// The general registers and flags as of the exit before the last one: on AMD-V all that is
    /// left after a triple fault.
    previous: (Regs, Rflags),
    /// Asked for once: CPUID stays as it is.
    paging_features: OnceLock<PagingFeatures>,
}

/// What a vCPU that stands still was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Running.
    Runnable,
    /// In HLT, interrupts on.
    Halted,
    /// In HLT with interrupts off, or waiting to be started by another vCPU.
    HaltedForEver,
}

impl RunState {
    /// Is it in HLT, or has it not been started?
    pub fn is_halted(self) -> bool {
        self != Self::Runnable
    }
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Vcpu {
    pub(super) fn new(mut fd: VcpuFd, run_size: usize, id: u32, local_apic: bool) -> Self {
        // With every exit the registers lie in kvm_run: no exit has to ask for them.
        fd.set_sync_valid_reg(SyncReg::Register);
        let previous = general(&kvm_regs::default());
        Self { fd, run_size, id, local_apic, previous, paging_features: OnceLock::new() }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Gives it CPUID; gives back what `model` asked for and this KVM does not have.
    pub fn set_cpuid(
        &self,
        supported: &SupportedCpuid,
        policy: &Policy,
        model: &Model,
    ) -> Result<Vec<String>, Error> {
        if supported.has_hyperv() {
            let cap = kvm_enable_cap { cap: KVM_CAP_HYPERV_SYNIC2, ..Default::default() };
            self.fd.enable_cap(&cap).map_err(Error::ioctl("KVM_CAP_HYPERV_SYNIC2"))?;
        }
        let (leaves, missing) = supported.shaped(policy, model);
        self.fd.set_cpuid2(&leaves).map_err(Error::ioctl("KVM_SET_CPUID2"))?;
        Ok(missing)
    }

    /// The CPUID that KVM says it has: a KVM may have changed what it was given.
    pub fn cpuid(&self) -> Result<Vec<Leaf>, Error> {
        let cpuid = self.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.map_err(Error::ioctl("KVM_GET_CPUID2"))?;
        Ok(cpuid.as_slice().iter().map(leaf).collect())
    }

    /// Gives it the state to start in. It travels with the first KVM_RUN, which saves two
    /// ioctls; an invalid state shows there, as [`Exit::Failed`] with EINVAL.
    pub fn set_entry(&mut self, cpu: &CpuInit) {
        let sync = self.fd.sync_regs_mut();
        sync.regs = regs(&cpu.regs, cpu.rflags);
        sync.sregs = sregs(cpu, self.id == 0);
        self.previous = general(&sync.regs);
        self.fd.get_kvm_run().kvm_dirty_regs = u64::from(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS);
    }

    /// Runs the guest until it exits; [`Self::last_exit`] and [`Self::kept`] tell why it did.
    #[inline]
    pub fn enter(&mut self) {
        self.previous = general(&self.fd.sync_regs_mut().regs);
        if let Err(e) = self.fd.run().map(|_| ()) {
            set_failed(self.fd.get_kvm_run(), e.errno());
        }
    }

    /// Runs the guest until it exits; gives RIP and the exit.
    pub fn run(&mut self) -> (u64, Exit<'_>) {
        self.enter();
        (self.rip(), self.last_exit())
    }

    /// Why it came back the last time.
    #[inline]
    pub fn last_exit(&mut self) -> Exit<'_> {
        decode(self.page())
    }

    /// The same for later.
    #[inline]
    pub fn kept(&mut self) -> Kept {
        Kept::new(self.page())
    }

    fn page(&mut self) -> &mut [u8] {
        let run: *mut _ = self.fd.get_kvm_run();
        // SAFETY: KVM_GET_VCPU_MMAP_SIZE bytes are mapped from `run` on for as long as `fd`
        // lives, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(run.cast(), self.run_size) }
    }

    /// `kvm_run.immediate_exit`: while it is set KVM_RUN only finishes what is half done.
    pub fn immediate_exit(&mut self) -> *const AtomicU8 {
        // An AtomicU8 has the layout of the u8; a signal handler of this thread writes it.
        (&raw mut self.fd.get_kvm_run().immediate_exit).cast()
    }

    /// Lets KVM_RUN run again.
    pub fn clear_immediate_exit(&mut self) {
        // SAFETY: the byte lies in the mapping of `self.fd`, which lives.
        unsafe { &*self.immediate_exit() }.store(0, Ordering::SeqCst);
    }

    fn synced(&mut self) -> &kvm_sync_regs {
        self.fd.sync_regs_mut()
    }

    /// RIP as of the last exit.
    pub fn rip(&mut self) -> u64 {
        self.synced().regs.rip
    }

    /// Is this the state of a processor after INIT? On AMD-V KVM puts a vCPU there when it
    /// sees a shutdown, and the state of the fault is lost.
    pub fn is_reinitialised(&mut self) -> bool {
        let regs = &self.synced().regs;
        regs.rip == 0xFFF0 && regs.rax | regs.rbx | regs.rcx | regs.rsi | regs.rdi | regs.rsp == 0
    }

    /// What it was doing when it was interrupted.
    pub fn run_state(&mut self) -> Result<RunState, Error> {
        if !self.local_apic {
            return Ok(RunState::Runnable); // HLT would have come back as an exit
        }
        let state = self.fd.get_mp_state().map_err(Error::ioctl("KVM_GET_MP_STATE"))?;
        let interrupts = self.synced().regs.rflags & Rflags::IF.bits() != 0;
        Ok(match state.mp_state {
            KVM_MP_STATE_HALTED if interrupts => RunState::Halted,
            KVM_MP_STATE_HALTED | KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => {
                RunState::HaltedForEver
            }
            _ => RunState::Runnable,
        })
    }

    /// Has another vCPU still to start it?
    pub fn waits_for_start(&self) -> bool {
        let state = self.local_apic.then(|| self.fd.get_mp_state());
        matches!(state, Some(Ok(state)) if matches!(
            state.mp_state,
            KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED
        ))
    }

    /// Are maskable interrupts enabled, as of the last exit?
    pub fn interrupts_enabled(&mut self) -> bool {
        self.synced().regs.rflags & Rflags::IF.bits() != 0
    }

    /// Its registers, by two ioctls and the first time one more: not for the exit path.
    pub fn state(&self) -> Result<CpuState, Error> {
        let regs = self.fd.get_regs().map_err(Error::ioctl("KVM_GET_REGS"))?;
        let sregs = self.fd.get_sregs().map_err(Error::ioctl("KVM_GET_SREGS"))?;
        Ok(state(&regs, &sregs, self.paging_features()?))
    }

    /// What KVM counted of it; empty where it does not say.
    pub fn stats(&self) -> Vec<Stat> {
        read_stats(&self.fd)
    }
}
