//! Has every processor halted for ever?
//!
//! With interrupt controllers in the kernel, HLT does not come back to user space. So every
//! vCPU looks, each time its timer ticks, whether it stands in a HLT that no interrupt can
//! end, or waits for another vCPU to start it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How often each vCPU looks.
pub(super) const PERIOD: Duration = Duration::from_millis(50);

/// Ticks in a row, on every vCPU, after which the machine counts as dead. One vCPU that runs
/// sets all of them back, so a processor that is about to send an INIT or an NMI to a halted
/// one keeps the machine alive.
const TICKS: u32 = 3;

/// For each vCPU: at how many of its ticks in a row it was halted for ever.
#[derive(Debug)]
pub struct HaltWatch {
    ticks: Box<[AtomicU32]>,
}

impl HaltWatch {
    /// A watch over `cpus` vCPUs.
    pub fn new(cpus: u32) -> Self {
        Self { ticks: (0..cpus).map(|_| AtomicU32::new(0)).collect() }
    }

    /// vCPU `id` says at its tick whether it is halted for ever. True when all are.
    pub fn tick(&self, id: u32, halted_for_ever: bool) -> bool {
        if !halted_for_ever {
            self.ticks.iter().for_each(|ticks| ticks.store(0, Ordering::SeqCst));
            return false;
        }
        if let Some(own) = self.ticks.get(id as usize) {
            own.fetch_add(1, Ordering::SeqCst);
        }
        self.ticks.iter().all(|ticks| ticks.load(Ordering::SeqCst) >= TICKS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_have_to_be_halted_for_some_ticks() {
        let watch = HaltWatch::new(2);
        for _ in 0..TICKS {
            assert!(!watch.tick(0, true));
        }
        assert!(!watch.tick(1, true));
        assert!(!watch.tick(1, true));
        assert!(watch.tick(1, true));
    }

    #[test]
    fn one_that_runs_sets_all_back() {
        let watch = HaltWatch::new(2);
        for _ in 0..10 {
            watch.tick(0, true);
        }
        watch.tick(1, false);
        for _ in 0..10 {
            assert!(!watch.tick(1, true));
        }
        assert!(!watch.tick(0, true));
        assert!(!watch.tick(0, true));
        assert!(watch.tick(0, true));
    }
}
