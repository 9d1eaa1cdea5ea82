//! A thread's lead of one worker: it hires it, gives it orders, and another thread sees by the
//! [`Watch`] that they are carried out in time. Used by `expand` and `supervise`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::crew::{Crew, Process, Worker, broken};
use super::outcome::Attempt;
use super::protocol::{Order, Reply};
use super::queue::Item;
use super::report::Progress;
use super::test::Test;

/// How often the clock, signals and the progress line are looked at.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// What a worker gets beyond all that its machines may take before it counts as hung: its own
/// watch over them has failed then, and it is killed.
const GRACE: Duration = Duration::from_secs(60);

/// Time limits that one order about a test of an image may take: the boot has one, another boot
/// where the machine cannot be put back, and the test itself.
const LIMITS_OF_A_MEMBER: u32 = 3;

/// Until when an order about a test is to be carried out; `None`: beyond all that a clock can tell.
fn deadline(began: Instant, test: &Test) -> Option<Instant> {
    let limits = if test.member.is_some() { LIMITS_OF_A_MEMBER } else { 1 };
    began.checked_add(test.limit.checked_mul(limits)?)?.checked_add(GRACE)
}

/// Who runs tests, and within which bounds.
#[derive(Clone, Copy)]
pub struct Workforce<'a> {
    /// Workers.
    pub jobs: usize,
    /// Bytes of RAM that all machines that run at once may have.
    pub budget: u64,
    /// Who they are.
    pub crew: &'a Crew<'a>,
    /// Where a signal's number comes to stand that ends the run; 0: none came.
    pub signal: &'a AtomicU8,
}

impl Workforce<'_> {
    /// The signal that ends the run.
    pub(super) fn signal(&self) -> Option<u8> {
        Some(self.signal.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }
}

/// Which worker is at what, and until when: for the clock and for signals.
#[derive(Default)]
pub(super) struct Watch(Mutex<BTreeMap<usize, Shift>>);

struct Shift {
    name: String,
    began: Instant,
    expected: Duration,
    deadline: Option<Instant>,
    process: Process,
    overdue: bool,
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Shift>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, slot: usize, item: &Item, process: Process) {
        let began = Instant::now();
        let deadline = deadline(began, &item.test);
        let (name, expected) = (item.name.clone(), item.expected);
        let shift = Shift { name, began, expected, deadline, process, overdue: false };
        self.lock().insert(slot, shift);
    }

    /// Was it killed for being late?
    fn end(&self, slot: usize) -> bool {
        self.lock().remove(&slot).is_some_and(|shift| shift.overdue)
    }

    pub(super) fn kill_late(&self) {
        let now = Instant::now();
        let is_late = |shift: &&mut Shift| shift.deadline.is_some_and(|deadline| deadline < now);
        for shift in self.lock().values_mut().filter(is_late) {
            shift.overdue = true;
            shift.process.kill();
        }
    }

    pub(super) fn kill_all(&self) {
        self.lock().values().for_each(|shift| shift.process.kill());
    }

    /// What runs; `left`: time that all waits for which does not.
    pub(super) fn progress(&self, left: Option<Duration>, jobs: usize) -> Progress {
        let shifts = self.lock();
        let running = shifts.values().map(|it| (it.name.clone(), it.began.elapsed())).collect();
        let rest = shifts.values().map(|it| it.expected.saturating_sub(it.began.elapsed()));
        let rest = rest.fold(left.unwrap_or_default(), Duration::saturating_add);
        let jobs = u32::try_from(jobs.max(1)).unwrap_or(u32::MAX);
        Progress { running, left: left.map(|_| rest / jobs) }
    }
}

/// Leads one worker.
pub(super) struct Lead<'a> {
    slot: usize,
    force: Workforce<'a>,
    watch: &'a Watch,
    worker: Option<Worker>,
}

impl<'a> Lead<'a> {
    /// Nobody is hired yet.
    pub(super) fn new(slot: usize, force: Workforce<'a>, watch: &'a Watch) -> Self {
        Self { slot, force, watch, worker: None }
    }

    pub(super) fn order_to_list(&self, test: &Test, keep: bool) -> Order {
        self.force.crew.order_to_list(test, keep)
    }

    /// Has an order about a test carried out.
    ///
    /// # Errors
    /// What the test came to instead: the worker died, was late, or the run is to end.
    pub(super) fn ask(&mut self, item: &Item, order: &Order) -> Result<Reply, Attempt> {
        let began = Instant::now();
        let broken = |message: String| broken(&item.test, began, message);
        let mut hired = match self.worker.take().map_or_else(|| self.force.crew.hire(), Ok) {
            Ok(hired) => hired,
            Err(e) => return Err(broken(format!("cannot start a worker process: {e}"))),
        };
        self.watch.begin(self.slot, item, hired.process());
        if self.force.signal().is_some() {
            hired.process().kill(); // the signal may have come before this process was watched
        }
        let reply = hired.ask(order);
        let overdue = self.watch.end(self.slot);
        let signal = self.force.signal();
        match reply {
            Ok(reply) => {
                self.worker = Some(hired);
                Ok(reply)
            }
            Err(_) if let Some(signal) = signal => Err(Attempt::ended_by(signal, began.elapsed())),
            Err(_) if overdue => Err(broken(format!(
                "the process that ran it did not come to the time limit's end and was killed, {} late",
                humantime::format_duration(GRACE)
            ))),
            Err(why) => Err(broken(why)),
        }
    }

    /// Lets others hire the worker.
    pub(super) fn end(self) {
        if let Some(worker) = self.worker {
            self.force.crew.rest(worker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boots_before_a_test_do_not_make_it_late() {
        let limit = Duration::from_secs(100);
        let began = Instant::now();
        let after = |test: &Test| deadline(began, test).map(|it| it - began);
        let image = Test { limit, ..Test::for_tests("image", 1) };
        assert_eq!(after(&image), Some(limit + GRACE));
        let member = Test { member: Some("test".to_owned()), ..image };
        assert_eq!(after(&member), Some(3 * limit + GRACE));
        assert_eq!(after(&Test { limit: Duration::MAX, ..member }), None);
    }
}
