//! What the vCPUs of a machine are told from outside: to end, and when; to park, for a
//! debugger.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::kick::{self, Thread};
use super::park::{Parking, Standing, Why};
use crate::kvm::Debug;
use crate::verdict::{StopLine, Verdict};

/// The requests that all vCPUs of a machine look at when they are kicked.
#[derive(Default)]
pub struct Control {
    /// Why the machine ends; the first one stays.
    verdict: Mutex<Option<Verdict>>,
    /// With what somebody outside wants it to end; the first one stays, over restarts too.
    ordered: Mutex<Option<Verdict>>,
    /// The threads in the run loop, each with its vCPU's number. A thread takes itself out before it ends, and kicks are
    /// sent under the lock: none reaches a dead thread.
    threads: Mutex<Vec<(u32, Thread)>>,
    /// When time is up, and the limit that says so. Looked at when a vCPU is kicked.
    deadline: Mutex<Option<(Instant, Duration)>>,
    /// All vCPUs are to leave the run loop when the guest says that it is ready.
    awaits_ready: AtomicBool,
    /// It has said so, and they have not been told to run on since.
    ready: AtomicBool,
    /// Where a handler of the process's own signals leaves their number; 0: none came.
    signal: Option<&'static AtomicU8>,
    /// Something else that may have ended the machine.
    watch: OnceLock<Watch>,
    /// Where vCPUs stand still and are asked; without a debugger and a control socket there is
    /// none.
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
        Arc::new(Self { deadline: Mutex::new(deadline), signal, ..Self::default() })
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

    /// Ends the machine with this, on behalf of somebody outside: the guest cannot escape it by a
    /// reset that comes just before.
    pub fn order(&self, verdict: Verdict) {
        lock(&self.ordered).get_or_insert(verdict.clone());
        self.stop(verdict);
    }

    /// Takes the verdict back, so that the machine can start again. No vCPU runs.
    pub fn rearm(&self) {
        *lock(&self.verdict) = None;
        self.ready.store(false, Ordering::SeqCst);
    }

    /// Takes back what was ordered too: the machine is another one from now on. No vCPU runs.
    pub fn renew(&self) {
        *lock(&self.ordered) = None;
        self.rearm();
    }

    /// Sets the time limit, from now on; `None` for none. No vCPU runs.
    pub fn set_limit(&self, limit: Option<Duration>) {
        let deadline = limit.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit)));
        *lock(&self.deadline) = deadline;
    }

    /// The time limit, if there is one.
    pub fn limit(&self) -> Option<Duration> {
        lock(&self.deadline).map(|(_, limit)| limit)
    }

    /// Are vCPUs to leave the run loop when the guest says that it is ready? No vCPU runs.
    pub fn await_ready(&self, awaited: bool) {
        self.ready.store(false, Ordering::SeqCst);
        self.awaits_ready.store(awaited, Ordering::SeqCst);
    }

    /// The guest is ready; called by a device, on a vCPU's thread.
    pub fn guest_is_ready(&self) {
        if self.awaits_ready.load(Ordering::SeqCst) {
            self.ready.store(true, Ordering::SeqCst);
            self.kick_all();
        }
    }

    /// Has it said so while that was awaited?
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }

    /// Are vCPUs to leave the run loop: is the machine to end, or ready?
    pub(super) fn should_leave(&self) -> bool {
        self.is_ready() || self.should_stop()
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
        if let Some(verdict) = self.outside_verdict() {
            self.stop(verdict);
        } else if let Some(verdict) = self.watch.get().and_then(|watch| watch()) {
            self.stop(verdict);
        }
        lock(&self.verdict).is_some()
    }

    /// Has a signal come, an order, or the time limit?
    fn outside_verdict(&self) -> Option<Verdict> {
        match self.signal.map_or(0, |signal| signal.load(Ordering::SeqCst)) {
            0 => {}
            signal => return Some(Verdict::Signal(signal)),
        }
        if let Some(verdict) = lock(&self.ordered).clone() {
            return Some(verdict);
        }
        let (deadline, limit) = (*lock(&self.deadline))?;
        (Instant::now() >= deadline).then_some(Verdict::TimedOut { limit })
    }

    /// How long until time is up.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let (deadline, _) = (*lock(&self.deadline))?;
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
        let _ = self.parking.set(parking); // who comes second shares the first one's
        Ok(())
    }

    /// Where vCPUs stand still and are asked, if anybody may ask.
    pub fn parking(&self) -> Option<&Parking> {
        self.parking.get()
    }

    /// Has the vCPU answer, and parks it if it is to; it has been kicked, and nothing is half
    /// done.
    pub(super) fn park(&self, it: &mut Standing<'_>) {
        if let Some(parking) = self.parking.get() {
            parking.park(it, &|| self.should_stop());
        }
    }

    /// Parks the vCPU before it leaves the run loop, if the guest died under a debugger.
    pub(super) fn show_death(&self, it: &mut Standing<'_>) {
        if let Some(parking) = self.parking.get()
            && let Some(verdict) = self.verdict()
        {
            parking.show_death(it, verdict, &|| self.outside_verdict().is_some());
        }
    }

    /// vCPU `id` had a debug exit. What it is to debug next, where it does not stop for it.
    pub(super) fn debug_exit(&self, id: u32, why: Why) -> Option<Debug> {
        let parking = self.parking.get()?;
        let step = parking.step_on(id, &why);
        if step.is_none() {
            parking.hit(id, why);
            self.kick_all();
        }
        step
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
    fn an_order_outlives_a_restart() {
        let control = Control::new(None, None);
        control.stop(Verdict::died(crate::verdict::Death::Reset, "by port 0x64"));
        control.order(Verdict::Signal(15));
        control.rearm();
        assert!(control.should_stop());
        assert_eq!(control.verdict(), Some(Verdict::Signal(15)));
        control.renew();
        assert!(!control.should_stop());
    }

    #[test]
    fn vcpus_leave_for_a_guest_that_is_ready_only_if_that_is_awaited() {
        let control = Control::new(None, None);
        control.guest_is_ready();
        assert!(!control.should_leave());
        control.await_ready(true);
        control.guest_is_ready();
        assert!(control.should_leave() && control.is_ready() && !control.should_stop());
        control.rearm();
        assert!(!control.should_leave());
    }

    #[test]
    fn a_limit_can_be_set_again() {
        let control = Control::new(None, None);
        control.set_limit(Some(Duration::ZERO));
        assert!(control.should_stop());
        assert_eq!(control.verdict(), Some(Verdict::TimedOut { limit: Duration::ZERO }));
        control.rearm();
        control.set_limit(None);
        assert!(!control.should_stop() && control.limit().is_none());
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
