//! Has every processor halted for ever?
//!
//! With interrupt controllers in the kernel, HLT does not come back to user space. So every
//! vCPU looks, each time its timer ticks, whether it stands in a HLT that no interrupt can
//! end, or waits for another vCPU to start it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::kick::Ticker;

/// How often each vCPU looks.
pub(super) const PERIOD: Duration = Duration::from_millis(50);

/// How long to wait before the next look at a clock that the first look found early.
const AGAIN: Duration = Duration::from_millis(10);

/// Ticks in a row, on every vCPU, after which the machine counts as dead. One vCPU that runs
/// sets all of them back, so a processor that is about to send an INIT or an NMI to a halted
/// one keeps the machine alive.
pub(super) const TICKS: u32 = 3;

/// Which of a vCPU's ticks are the watch's, where another wants them more often.
#[derive(Default)]
pub struct Ticks {
    /// How often the other one wants them.
    pub sampling: Option<Duration>,
    seen: u32,
    /// What makes them.
    pub(super) ticker: Option<Ticker>,
}

impl Ticks {
    /// One came: is it the watches'?
    pub(super) fn is_due(&mut self) -> bool {
        let Some(sampling) = self.sampling.filter(|it| *it < PERIOD) else { return true };
        self.seen += 1;
        let due = PERIOD.as_nanos() <= sampling.as_nanos() * u128::from(self.seen);
        if due {
            self.seen = 0;
        }
        due
    }

    /// The time to the first tick, and between all others (zero: each is asked for); `None`
    /// where nobody wants any. With `deadline` the first comes no later than that.
    pub(super) fn times(
        &self,
        watch: bool,
        deadline: Option<Duration>,
    ) -> Option<(Duration, Duration)> {
        let (first, period) = match (self.sampling, watch, deadline) {
            (Some(sampling), ..) => (sampling, Duration::ZERO),
            (None, true, _) => (PERIOD, PERIOD),
            (None, false, deadline) => (deadline?, AGAIN),
        };
        Some((deadline.map_or(first, |deadline| deadline.min(first)), period))
    }

    /// Asks for the next sample: only when one is taken, so that the guest gets on between two
    /// of them, however slow the machine.
    pub(super) fn next_sample(&self) {
        if let (Some(ticker), Some(sampling)) = (&self.ticker, self.sampling)
            && let Err(e) = ticker.set(sampling, Duration::ZERO)
        {
            log::warn!("no more samples: {e}");
        }
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

    /// Forgets what it saw: the machine has been put back.
    pub fn reset(&self) {
        self.ticks.iter().for_each(|ticks| ticks.store(0, Ordering::SeqCst));
    }

    /// vCPU `id` says at its tick whether it is halted for ever. True when all are.
    pub fn tick(&self, id: u32, halted_for_ever: bool) -> bool {
        if !halted_for_ever {
            self.reset();
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
        let mut shared = Ticks { sampling: Some(PERIOD / 10), ..Ticks::default() };
        assert_eq!((1..=30).filter(|_| shared.is_due()).count(), 3);
    }

    #[test]
    fn one_timer_serves_all() {
        let (soon, late) = (Duration::from_micros(5), Duration::from_secs(5));
        let none = Ticks::default();
        assert_eq!(none.times(false, None), None);
        assert_eq!(none.times(false, Some(late)), Some((late, AGAIN)));
        assert_eq!(none.times(true, Some(late)), Some((PERIOD, PERIOD)));
        assert_eq!(none.times(true, Some(soon)), Some((soon, PERIOD)));
        let samples = Ticks { sampling: Some(PERIOD / 10), ..Ticks::default() };
        assert_eq!(samples.times(true, Some(late)), Some((PERIOD / 10, Duration::ZERO)));
        assert_eq!(samples.times(false, Some(soon)), Some((soon, Duration::ZERO)));
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
