//! What the vCPUs of a machine are told from outside: to end, and when.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::kick::{self, Thread};
use crate::verdict::{StopLine, Verdict};

/// The requests that all vCPUs of a machine look at when they are kicked.
#[derive(Default)]
pub struct Control {
    /// Why the machine ends; the first one stays.
    verdict: Mutex<Option<Verdict>>,
    /// The threads in the run loop. A thread takes itself out before it ends, and kicks are
    /// sent under the lock: none reaches a dead thread.
    threads: Mutex<Vec<Thread>>,
    /// When time is up, and the limit that says so.
    deadline: Option<(Instant, Duration)>,
    /// Where a handler of the process's own signals leaves their number; 0: none came.
    signal: Option<&'static AtomicU8>,
    /// Something else that may have ended the machine.
    watch: OnceLock<Watch>,
}

/// Looks whether something that no exit shows has ended the machine.
pub type Watch = Box<dyn Fn() -> Option<Verdict> + Send + Sync>;

impl Control {
    /// Requests for a machine whose time is up at `deadline` (a point, and the limit that it
    /// follows from), and which ends when `signal` becomes the number of a signal.
    pub fn new(
        deadline: Option<(Instant, Duration)>,
        signal: Option<&'static AtomicU8>,
    ) -> Arc<Self> {
        Arc::new(Self { deadline, signal, ..Self::default() })
    }

    /// Why the machine ends, as soon as it does.
    pub fn verdict(&self) -> Option<Verdict> {
        lock(&self.verdict).clone()
    }

    /// Takes the verdict back, so that the machine can start again. No vCPU runs.
    pub fn rearm(&self) {
        *lock(&self.verdict) = None;
    }

    /// Has the watch be asked too, whenever a vCPU looks; the first one stays.
    pub fn set_watch(&self, watch: Watch) {
        let _ = self.watch.set(watch);
    }

    /// Is the machine to end? Looks at the clock, the signal and the watch too.
    pub fn should_stop(&self) -> bool {
        if lock(&self.verdict).is_some() {
            return true;
        }
        let signal = self.signal.map_or(0, |signal| signal.load(Ordering::SeqCst));
        if signal != 0 {
            self.stop(Verdict::Signal(signal));
        } else if let Some((deadline, limit)) = self.deadline
            && Instant::now() >= deadline
        {
            self.stop(Verdict::TimedOut { limit });
        } else if let Some(verdict) = self.watch.get().and_then(|watch| watch()) {
            self.stop(verdict);
        }
        lock(&self.verdict).is_some()
    }

    /// How long until time is up.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let (deadline, _) = self.deadline?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    pub(super) fn enter(&self, thread: Thread) {
        lock(&self.threads).push(thread);
    }

    pub(super) fn leave(&self, thread: Thread) {
        lock(&self.threads).retain(|other| *other != thread);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
impl StopLine for Control {
    fn stop(&self, verdict: Verdict) {
        // The request first, the kick after it; see `kick`.
        lock(&self.verdict).get_or_insert(verdict);
        kick::kick_self();
        let own = Thread::current();
        for thread in lock(&self.threads).iter().filter(|thread| **thread != own) {
            // SAFETY: a thread in the list has not left the run loop, so it has not ended.
            unsafe { thread.kick() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Success;

    #[test]
    fn the_first_verdict_stays() {
        let control = Control::new(None, None);
        assert!(!control.should_stop());
        control.stop(Verdict::from_guest_code(3));
        control.stop(Verdict::Success(Success::PowerOff));
        assert!(control.should_stop());
        assert_eq!(control.verdict(), Some(Verdict::Failed { code: 3 }));
        control.rearm();
        assert!(!control.should_stop());
    }

    #[test]
    fn time_and_signals_end_a_machine() {
        let limit = Duration::from_secs(1);
        let control = Control::new(Some((Instant::now(), limit)), None);
        assert!(control.should_stop());
        assert_eq!(control.verdict(), Some(Verdict::TimedOut { limit }));

        static SIGNAL: AtomicU8 = AtomicU8::new(0);
        let control = Control::new(None, Some(&SIGNAL));
        assert!(!control.should_stop());
        SIGNAL.store(15, Ordering::SeqCst);
        assert!(control.should_stop());
        assert_eq!(control.verdict(), Some(Verdict::Signal(15)));
    }
}
