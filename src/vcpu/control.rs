//! What the vCPUs of a machine are told from outside: to end, and when; to park, for a
//! debugger.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::counts::Counts;
use super::kick::{self, Thread};
use super::park::{Parking, Why};
use crate::kvm::Vcpu;
use crate::verdict::{StopLine, Verdict};

/// The requests that all vCPUs of a machine look at when they are kicked.
#[derive(Default)]
pub struct Control {
    /// Why the machine ends; the first one stays.
    verdict: Mutex<Option<Verdict>>,
    /// The threads in the run loop, each with its vCPU's number. A thread takes itself out before it ends, and kicks are
    /// sent under the lock: none reaches a dead thread.
    threads: Mutex<Vec<(u32, Thread)>>,
    /// When time is up, and the limit that says so.
    deadline: Option<(Instant, Duration)>,
    /// Where a handler of the process's own signals leaves their number; 0: none came.
    signal: Option<&'static AtomicU8>,
    /// Something else that may have ended the machine.
    watch: OnceLock<Watch>,
    /// Where vCPUs stand still for a debugger; without one there is none.
    parking: OnceLock<Parking>,
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

    /// Requests for a second run of the same machine, which takes no longer than `limit` and
    /// ends by the same signals.
    pub fn for_second_run(&self, limit: Duration) -> Arc<Self> {
        let deadline = Instant::now().checked_add(limit).map(|at| (at, limit));
        Self::new(deadline, self.signal)
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
        if let Some(verdict) = self.out_of_time() {
            self.stop(verdict);
        } else if let Some(verdict) = self.watch.get().and_then(|watch| watch()) {
            self.stop(verdict);
        }
        lock(&self.verdict).is_some()
    }

    /// Has a signal come, or the time limit?
    fn out_of_time(&self) -> Option<Verdict> {
        match self.signal.map_or(0, |signal| signal.load(Ordering::SeqCst)) {
            0 => {}
            signal => return Some(Verdict::Signal(signal)),
        }
        let (deadline, limit) = self.deadline?;
        (Instant::now() >= deadline).then_some(Verdict::TimedOut { limit })
    }

    /// How long until time is up.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let (deadline, _) = self.deadline?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    pub(super) fn enter(&self, id: u32, thread: Thread) {
        lock(&self.threads).push((id, thread));
        if self.parking.get().is_some() {
            // It may have been told to park before it could be kicked.
            kick::kick_self();
        }
    }

    pub(super) fn leave(&self, id: u32, thread: Thread) {
        lock(&self.threads).retain(|(_, other)| *other != thread);
        if let Some(parking) = self.parking.get() {
            parking.leave(id);
        }
    }

    /// Gives the machine a parking, before it runs. With `hold` its first instruction waits
    /// for a debugger; with `resets_restart` a reset is no end.
    pub fn set_parking(&self, hold: bool, resets_restart: bool) -> io::Result<()> {
        let parking = Parking::new(hold, resets_restart)?;
        let _ = self.parking.set(parking); // a second debugger shares the first one's
        Ok(())
    }

    /// Where vCPUs stand still for a debugger, if there is one.
    pub fn parking(&self) -> Option<&Parking> {
        self.parking.get()
    }

    /// Parks the vCPU if it is to; it has been kicked, and nothing is half done.
    pub(super) fn park(&self, vcpu: &mut Vcpu, counts: &Counts) {
        if let Some(parking) = self.parking.get() {
            parking.park(vcpu, counts, &|| self.should_stop());
        }
    }

    /// Parks the vCPU before it leaves the run loop, if the guest died under a debugger.
    pub(super) fn show_death(&self, vcpu: &mut Vcpu, counts: &Counts) {
        if let Some(parking) = self.parking.get()
            && let Some(verdict) = self.verdict()
        {
            parking.show_death(vcpu, counts, verdict, &|| self.out_of_time().is_some());
        }
    }

    /// vCPU `id` had a debug exit. False when there is no debugger.
    pub(super) fn debug_exit(&self, id: u32, why: Why) -> bool {
        let Some(parking) = self.parking.get() else { return false };
        parking.hit(id, why);
        self.kick_all();
        true
    }

    /// Has every vCPU look at its requests.
    pub(super) fn kick_all(&self) {
        kick::kick_self();
        let own = Thread::current();
        for (_, thread) in lock(&self.threads).iter().filter(|(_, thread)| *thread != own) {
            // SAFETY: a thread in the list has not left the run loop, so it has not ended.
            unsafe { thread.kick() };
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StopLine for Control {
    fn stop(&self, verdict: Verdict) {
        // The request first, the kick after it; see `kick`.
        lock(&self.verdict).get_or_insert(verdict);
        if let Some(parking) = self.parking.get() {
            let own = Thread::current();
            let culprit = lock(&self.threads).iter().find(|(_, thread)| *thread == own).copied();
            culprit.into_iter().for_each(|(id, _)| parking.blame(id));
            parking.wake();
        }
        self.kick_all();
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
