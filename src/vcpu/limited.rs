//! A vCPU that runs by itself for a limited time, without a bus: for finding out what a KVM
//! does. Called by `audit` and `machine`, on a thread that runs no other vCPU.

use std::io;
use std::time::{Duration, Instant};

use super::kick::{Target, Ticker, kick_self};
use crate::kvm::{self, Debug, Exit, Vcpu};

/// After the limit the thread is kicked again and again: a kick between two runs is not lost.
const INSIST: Duration = Duration::from_millis(5);

/// A vCPU on the calling thread, and when its time is up.
pub struct Limited<'v> {
    vcpu: &'v mut Vcpu,
    deadline: Instant,
}

impl Limited<'_> {
    /// Has it be debugged from its entry state on.
    ///
    /// # Errors
    /// This KVM does not debug so.
    pub fn debug(&mut self, debug: &Debug) -> Result<(), kvm::Error> {
        // The entry state comes to KVM with a KVM_RUN, and a single step begins where RIP is then.
        kick_self();
        self.vcpu.run();
        self.vcpu.set_debug(debug)
    }

    /// Runs it until it exits or its time is up; the caller does what the exit asks for.
    /// `None` when time is up.
    pub fn run(&mut self) -> Option<(u64, Exit<'_>)> {
        loop {
            self.vcpu.clear_immediate_exit();
            if Instant::now() >= self.deadline {
                return None;
            }
            if !matches!(self.vcpu.run(), (_, Exit::Interrupted)) {
                return Some((self.vcpu.rip(), self.vcpu.last_exit()));
            }
        }
    }
}

/// Does `work` with a vCPU that is brought out of the guest when `limit` has passed.
///
/// # Errors
/// The host gave no signal handler or no timer.
pub fn limited<R>(
    vcpu: &mut Vcpu,
    limit: Duration,
    work: impl FnOnce(&mut Limited<'_>) -> R,
) -> io::Result<R> {
    // SAFETY: the byte lies in the vCPU's mapping, and `vcpu` is borrowed for longer than
    // `_target` lives; that is dropped at the end of this function, on this thread.
    let _target = unsafe { Target::new(vcpu.immediate_exit()) }?;
    let _ticker = Ticker::start(limit, INSIST)?;
    let deadline = Instant::now() + limit;
    Ok(work(&mut Limited { vcpu, deadline }))
}
