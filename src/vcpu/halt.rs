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

/// Which of a vCPU's ticks are the watch's, where another wants them more often.
#[derive(Debug, Default)]
pub struct Ticks {
    /// How often the other one wants them.
    pub sampling: Option<Duration>,
    seen: u32,
}

impl Ticks {
    /// One came: is it the watch's?
    pub(super) fn is_due(&mut self) -> bool {
        let Some(sampling) = self.sampling.filter(|it| *it < PERIOD) else { return true };
        self.seen += 1;
        let due = PERIOD.as_nanos() <= sampling.as_nanos() * u128::from(self.seen);
        if due {
            self.seen = 0;
        }
        due
    }

    /// The time between ticks that serves both; `None` where nobody wants any.
    pub(super) fn period(&self, halt_watch: bool) -> Option<Duration> {
        let own = halt_watch.then_some(PERIOD);
        own.into_iter().chain(self.sampling).min()
    }
}

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
    fn frequent_ticks_do_not_hurry_the_watch() {
        let mut alone = Ticks::default();
        assert!(alone.is_due() && alone.is_due());
        assert_eq!((alone.period(true), alone.period(false)), (Some(PERIOD), None));
        let mut shared = Ticks { sampling: Some(PERIOD / 10), ..Ticks::default() };
        let due = (1..=30).filter(|_| shared.is_due()).count();
        assert_eq!((due, shared.period(true)), (3, Some(PERIOD / 10)));
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
