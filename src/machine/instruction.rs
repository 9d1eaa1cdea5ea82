//! Which instruction a vCPU ended by, where it stands behind it: KVM leaves HLT and accesses to
//! devices with RIP at the next one. Called by the autopsy.

use super::platform::PVPANIC;
use crate::inspect::Functions;
use crate::inspect::walk::AddressSpace;
use crate::inspect::watch::culprit;
use crate::kvm::{Exit, ExitKind, RunState};
use crate::mem::GuestMemory;
use crate::vcpu::{Record, RunLoop, UnclaimedKind};
use crate::verdict::{Death, Verdict};
use crate::x86::CpuState;

const HLT: u8 = 0xF4;

/// The write by which a vCPU told of the guest's panic.
pub(super) fn panic_write(it: &RunLoop, verdict: &Verdict) -> Option<Record> {
    let Verdict::Died { cause: Death::Panic, .. } = verdict else { return None };
    let own = |record: &Record| record.kind.is_guests_own();
    let last = it.recorder.tail(usize::MAX).into_iter().rfind(own)?;
    (last.kind == ExitKind::PioOut && last.address == PVPANIC).then_some(last)
}

/// RIP of the instruction that it ended by; `None` where it stands at that one, or where only
/// RIP is known.
pub(super) fn instruction(
    it: &mut RunLoop,
    verdict: &Verdict,
    memory: &GuestMemory,
    state: &CpuState,
    functions: impl FnOnce() -> Functions,
) -> Option<u64> {
    if let Some(violation) = &it.violation {
        if violation.what.is_some() {
            return None; // KVM has not done it
        }
        return culprit(violation.kind, &violation.record, memory, state, functions);
    }
    if let Some(record) = panic_write(it, verdict) {
        return culprit(UnclaimedKind::PioWrite, &record, memory, state, functions);
    }
    let halted =
        it.vcpu.last_exit() == Exit::Hlt || it.vcpu.run_state().is_ok_and(RunState::is_halted);
    let space = AddressSpace::new(memory, state);
    let mut before = [0];
    let read = space.peek(state.linear_rip().wrapping_sub(1), &mut before);
    (halted && read == 1 && before == [HLT]).then(|| state.regs.rip.wrapping_sub(1))
}
