//! Parking: how a debugger makes every vCPU of a machine stand still, asks it, and lets it go;
//! and how one that runs is asked in passing.
//!
//! A vCPU is parked on its own thread, between two KVM_RUNs, with no instruction half done:
//! whoever wants it to park says so here and kicks its thread; the kick makes KVM_RUN finish
//! what is half done and come back, and the loop then looks here. While it is parked it
//! answers questions, on its own thread, so that a `Vcpu` never leaves its owner.
//!
//! A machine without a debugger and a control socket has no `Parking`, and nothing here costs
//! it anything.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::counts::Counts;
use super::recorder::Observer;
use crate::kvm::{Debug, Vcpu};
use crate::verdict::{Death, Verdict};

/// How often a parked vCPU looks whether the machine is to end: a signal to the process and
/// the end of a time limit wake nobody here.
const LOOK: Duration = Duration::from_millis(50);

/// Why the vCPUs stand still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The debugger asked.
    Asked,
    /// The machine is about to run its first instruction.
    Started,
    /// A debug exit.
    Debug {
        /// 1 (#DB) or 3 (#BP).
        exception: u32,
        /// The instruction pointer, a linear address.
        pc: u64,
        /// The debug status register.
        dr6: u64,
    },
    /// The guest has died; when the vCPUs are let go the machine ends.
    Dying(Verdict),
}

/// All vCPUs stand still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Where it began.
    pub cpu: u32,
    /// Why.
    pub why: Why,
}

/// Breakpoints that are looked for instruction by instruction, where a KVM has no others. The
/// vCPU's own thread does it: a debugger would have to be woken for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hunt {
    /// Linear addresses to stop at.
    pub places: Vec<u64>,
    /// What sets the next single step: entering an exception's handler switches it off.
    pub step: Debug,
}

impl Hunt {
    /// Is this a step that led to none of the places?
    fn passes(&self, why: &Why) -> bool {
        const DB: u32 = 1;
        const DR6_REGISTERS: u64 = 0xF;
        matches!(why, Why::Debug { exception: DB, pc, dr6 }
            if dr6 & DR6_REGISTERS == 0 && !self.places.contains(pc))
    }
}

/// What a debugger waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// All vCPUs stand still.
    Stopped(Stop),
    /// The machine has ended.
    Ended(Verdict),
}

/// A vCPU that stands still, as whoever asks it finds it.
pub struct Standing<'a> {
    /// The vCPU.
    pub vcpu: &'a mut Vcpu,
    /// Is it held, by a debugger or by a pause?
    pub parked: bool,
    /// What it has counted since the machine started.
    pub counts: &'a Counts,
    /// Who watches its exits; one that is put here watches from now on.
    pub observer: &'a mut Option<Box<dyn Observer>>,
}

/// What a vCPU is asked.
type Question = Box<dyn FnOnce(&mut Standing<'_>) + Send>;

/// Questions that wait for one vCPU: more are not taken, so that a vCPU that does not come to
/// answer (its output is not read) makes nothing grow.
const QUESTIONS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Its thread is not in the run loop.
    Away,
    Running,
    Parked,
}

/// One vCPU's.
struct Lot {
    place: Place,
    /// It is to park, and to stay.
    hold: bool,
    questions: VecDeque<Question>,
    hunt: Option<Hunt>,
}

impl Lot {
    fn new(place: Place, hold: bool) -> Self {
        Self { place, hold, questions: VecDeque::new(), hunt: None }
    }

    /// Has it answer `question`; `None` where too many wait. The answer does not come where
    /// the vCPU leaves first: it drops the question, and the sender in it.
    fn ask<R: Send + 'static>(
        &mut self,
        question: impl FnOnce(&mut Standing<'_>) -> R + Send + 'static,
    ) -> Option<mpsc::Receiver<R>> {
        if self.questions.len() == QUESTIONS {
            return None;
        }
        let (answer, answered) = mpsc::channel();
        self.questions.push_back(Box::new(move |standing| {
            let _ = answer.send(question(standing)); // who asked may have lost patience
        }));
        Some(answered)
    }
}

#[derive(Default)]
struct State {
    attached: bool,
    hold_at_start: bool,
    lots: Vec<Lot>,
    /// Why all are to stand still; the first reason stays until it is told.
    stop: Option<Stop>,
    /// Debug exits that came while the vCPUs were on their way to stand still for another.
    late: Vec<Stop>,
    /// Somebody wants them to stand still and has not seen it yet.
    asked: bool,
    /// A vCPU was held when the machine came to its end.
    was_held: bool,
    /// Where the verdict was given, if on a vCPU's thread.
    culprit: Option<u32>,
    reset: bool,
    ended: Option<Verdict>,
}

/// The parking of one machine, over all its restarts.
pub struct Parking {
    /// Never held while another lock is taken.
    state: Mutex<State>,
    /// Something changed for a parked vCPU.
    changed: Condvar,
    /// Readable when there may be [`News`].
    news: EventFd,
    /// Resets start the machine again, so they are no death to stop at.
    resets_restart: bool,
}

impl Parking {
    /// With `hold` the machine's first instruction waits for a debugger.
    pub(super) fn new(hold: bool, resets_restart: bool) -> io::Result<Self> {
        let state = State { hold_at_start: hold, ..State::default() };
        let news = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { state: Mutex::new(state), changed: Condvar::new(), news, resets_restart })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // What the vCPUs' threads call.

    /// The machine starts, or starts again, with `cpus` vCPUs.
    pub(super) fn begin(&self, cpus: usize) {
        let mut state = self.lock();
        let starts = state.attached || std::mem::take(&mut state.hold_at_start);
        let why = match starts {
            true => Some(Why::Started),
            // While no vCPU ran.
            false => state.asked.then_some(Why::Asked),
        };
        let lot = || Lot::new(Place::Running, why.is_some());
        state.lots = std::iter::repeat_with(lot).take(cpus).collect();
        state.stop = why.map(|why| Stop { cpu: 0, why });
        state.late.clear();
        (state.culprit, state.was_held) = (None, false);
    }

    /// vCPU `id` has left the run loop.
    pub(super) fn leave(&self, id: u32) {
        let mut state = self.lock();
        if let Some(lot) = state.lots.get_mut(id as usize) {
            *lot = Lot::new(Place::Away, false);
        }
        self.tell(&state);
    }

    /// The verdict was given on the thread of vCPU `id`.
    pub(super) fn blame(&self, id: u32) {
        self.lock().culprit.get_or_insert(id);
    }

    /// Answers what the vCPU is asked, and parks it for as long as it is held. `is_over` says
    /// whether to leave in any case.
    pub(super) fn park(&self, it: &mut Standing<'_>, is_over: &dyn Fn() -> bool) {
        let id = it.vcpu.id() as usize;
        let mut state = self.lock();
        loop {
            let Some(lot) = state.lots.get_mut(id) else { return };
            if let Some(question) = lot.questions.pop_front() {
                it.parked = lot.hold;
                drop(state);
                question(it);
                state = self.lock();
                continue;
            }
            if !lot.hold {
                lot.place = Place::Running;
                return;
            }
            if lot.place != Place::Parked {
                lot.place = Place::Parked;
                self.tell(&state);
            }
            let timed = self.changed.wait_timeout(state, LOOK);
            drop(timed.unwrap_or_else(PoisonError::into_inner));
            let over = is_over();
            state = self.lock();
            if over {
                state.was_held |= state.lots.get(id).is_some_and(|lot| lot.hold);
                return;
            }
        }
    }

    /// Before a vCPU leaves the run loop: if the guest has died a debugger sees it first.
    pub(super) fn show_death(
        &self,
        it: &mut Standing<'_>,
        verdict: Verdict,
        is_over: &dyn Fn() -> bool,
    ) {
        let restarts = |cause| cause == Death::Reset && self.resets_restart;
        let mut state = self.lock();
        let dies = matches!(verdict, Verdict::Died { cause, .. } if !restarts(cause));
        if !dies || !state.attached || state.reset {
            return;
        }
        if !matches!(state.stop, Some(Stop { why: Why::Dying(_), .. })) {
            let cpu = state.culprit.unwrap_or(it.vcpu.id());
            state.stop = Some(Stop { cpu, why: Why::Dying(verdict) });
            state.lots.iter_mut().for_each(|lot| lot.hold = true);
        }
        drop(state);
        self.park(it, is_over);
    }

    /// The next single step of vCPU `cpu`, where this debug exit was but one on the way to a
    /// breakpoint.
    pub(super) fn step_on(&self, cpu: u32, why: &Why) -> Option<Debug> {
        let state = self.lock();
        let hunt = state.lots.get(cpu as usize)?.hunt.as_ref()?;
        hunt.passes(why).then_some(hunt.step)
    }

    /// vCPU `cpu` had a debug exit: all are to stand still. The caller kicks them.
    pub(super) fn hit(&self, cpu: u32, why: Why) {
        let mut state = self.lock();
        let stop = Stop { cpu, why };
        match state.stop {
            None => state.stop = Some(stop),
            Some(_) => state.late.push(stop),
        }
        state.lots.iter_mut().for_each(|lot| lot.hold = true);
    }

    // What the debugger calls.

    /// All vCPUs are to stand still. The caller kicks them.
    pub(super) fn hold(&self) {
        let mut state = self.lock();
        state.asked = true;
        state.stop.get_or_insert(Stop { cpu: 0, why: Why::Asked });
        state.lots.iter_mut().for_each(|lot| lot.hold = true);
        self.tell(&state);
    }

    /// Were they to stand still, whatever they do so for now? Told once.
    pub fn take_asked(&self) -> bool {
        std::mem::take(&mut self.lock().asked)
    }

    /// A debugger is there, or is not: only then guests stop before they die, and restarts
    /// before their first instruction.
    pub fn set_attached(&self, attached: bool) {
        self.lock().attached = attached;
    }

    /// Readable when [`Self::news`] has something to say; reading it is left to that.
    pub fn news_fd(&self) -> RawFd {
        self.news.as_raw_fd()
    }

    /// What happened, once.
    pub fn news(&self) -> Option<News> {
        let _ = self.news.read(); // empty when nothing was written since
        let mut state = self.lock();
        if let Some(verdict) = &state.ended {
            return Some(News::Ended(verdict.clone()));
        }
        if stands_still(&state) { state.stop.take().map(News::Stopped) } else { None }
    }

    /// From the next release on a vCPU that stands still looks for breakpoints, or for none.
    pub fn set_hunt(&self, cpu: u32, hunt: Option<Hunt>) {
        if let Some(lot) = self.lock().lots.get_mut(cpu as usize) {
            lot.hunt = hunt;
        }
    }

    /// The debug exits that came beside the one that was told.
    pub fn late(&self) -> Vec<Stop> {
        std::mem::take(&mut self.lock().late)
    }

    /// Asks a parked vCPU; `None` when it is not parked (any more).
    pub fn ask<R: Send + 'static>(
        &self,
        cpu: u32,
        question: impl FnOnce(&mut Vcpu, &Counts) -> R + Send + 'static,
    ) -> Option<R> {
        let mut state = self.lock();
        let lot = state.lots.get_mut(cpu as usize).filter(|lot| lot.place == Place::Parked)?;
        let answered = lot.ask(move |it| question(it.vcpu, it.counts))?;
        drop(state);
        self.changed.notify_all();
        answered.recv().ok()
    }

    /// Asks every vCPU, whether it runs or not; the caller kicks them. `None` for one that
    /// cannot be asked.
    fn ask_all<R: Send + 'static>(
        &self,
        question: impl Fn(&mut Standing<'_>) -> R + Clone + Send + 'static,
    ) -> Vec<Option<mpsc::Receiver<R>>> {
        let mut state = self.lock();
        let there = |lot: &mut Lot| match lot.place {
            Place::Away => None,
            Place::Running | Place::Parked => lot.ask(question.clone()),
        };
        let answers = state.lots.iter_mut().map(there).collect();
        drop(state);
        self.changed.notify_all();
        answers
    }

    /// Lets those vCPUs go that `which` names; the others stay.
    pub fn release(&self, which: impl Fn(u32) -> bool) {
        let mut state = self.lock();
        (state.stop, state.asked) = (None, false);
        for (id, lot) in state.lots.iter_mut().enumerate().filter(|(id, _)| which(*id as u32)) {
            log::trace!("vcpu {id} runs on");
            lot.hold = false;
            if lot.place == Place::Parked {
                lot.place = Place::Running;
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The machine is to start again from its image when its vCPUs have left.
    pub fn set_reset(&self) {
        self.lock().reset = true;
    }

    /// Is it?
    pub fn is_reset_wanted(&self) -> bool {
        self.lock().reset
    }

    /// The same, once.
    pub fn take_reset(&self) -> bool {
        std::mem::take(&mut self.lock().reset)
    }

    /// Was a vCPU held when the machine came to its end?
    pub fn was_held(&self) -> bool {
        self.lock().was_held
    }

    /// The machine has ended, with this verdict.
    pub fn end(&self, verdict: Verdict) {
        let mut state = self.lock();
        state.ended = Some(verdict);
        self.tell(&state);
    }

    /// It goes on all the same, from a checkpoint.
    pub fn reopen(&self) {
        let mut state = self.lock();
        (state.ended, state.asked) = (None, false);
    }

    /// Parked vCPUs are to look whether the machine is over.
    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }

    fn tell(&self, state: &State) {
        if state.ended.is_some() || state.stop.is_some() && stands_still(state) {
            let _ = self.news.write(1); // fails only when 2^64 - 2 news wait
        }
    }
}

/// Is none running, and one there?
fn stands_still(state: &State) -> bool {
    let is = |place| move |lot: &Lot| lot.place == place;
    !state.lots.iter().any(is(Place::Running)) && state.lots.iter().any(is(Place::Parked))
}

impl super::control::Control {
    /// All vCPUs are to stand still, for the debugger.
    pub fn pause(&self) {
        if let Some(parking) = self.parking() {
            parking.hold();
            self.kick_all();
        }
    }

    /// Asks every vCPU, each on its own thread; one that runs answers in passing. `None` for
    /// one that has left, or has not answered after `patience`.
    pub fn ask_all<R: Send + 'static>(
        &self,
        patience: Duration,
        question: impl Fn(&mut Standing<'_>) -> R + Clone + Send + 'static,
    ) -> Vec<Option<R>> {
        let Some(parking) = self.parking() else { return Vec::new() };
        let answers = parking.ask_all(question);
        self.kick_all();
        let end = Instant::now() + patience;
        let left = || end.saturating_duration_since(Instant::now());
        answers.into_iter().map(|answer| answer?.recv_timeout(left()).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parking(hold: bool) -> Parking {
        Parking::new(hold, false).unwrap()
    }

    fn place(parking: &Parking, id: usize, place: Place) {
        let mut state = parking.lock();
        state.lots[id].place = place;
        parking.tell(&state);
    }

    #[test]
    fn a_stop_is_told_when_all_stand_still_and_once() {
        let parking = parking(false);
        parking.begin(2);
        assert_eq!(parking.news(), None);
        parking.hold();
        place(&parking, 0, Place::Parked);
        assert_eq!(parking.news(), None);
        place(&parking, 1, Place::Parked);
        let stop = Stop { cpu: 0, why: Why::Asked };
        assert_eq!(parking.news(), Some(News::Stopped(stop)));
        assert_eq!(parking.news(), None);
    }

    #[test]
    fn the_first_reason_counts_and_later_ones_are_kept() {
        let parking = parking(false);
        parking.begin(2);
        let debug = |dr6| Why::Debug { exception: 1, pc: 0x1000, dr6 };
        parking.hit(1, debug(1));
        parking.hit(0, debug(2));
        place(&parking, 0, Place::Parked);
        parking.leave(1);
        assert_eq!(parking.news(), Some(News::Stopped(Stop { cpu: 1, why: debug(1) })));
        assert_eq!(parking.late(), [Stop { cpu: 0, why: debug(2) }]);
        assert_eq!(parking.late(), []);
    }

    #[test]
    fn a_hunt_stops_at_its_places_and_for_all_that_is_no_step() {
        let parking = parking(false);
        parking.begin(1);
        let why = |exception, pc, dr6| Why::Debug { exception, pc, dr6 };
        assert_eq!(parking.step_on(0, &why(1, 0x1000, 1 << 14)), None);
        let step = Debug { single_step: true, ..Debug::default() };
        parking.set_hunt(0, Some(Hunt { places: vec![0x1000], step }));
        assert_eq!(parking.step_on(0, &why(1, 0x2000, 1 << 14)), Some(step));
        assert_eq!(parking.step_on(0, &why(1, 0x1000, 1 << 14)), None);
        assert_eq!(parking.step_on(0, &why(1, 0x2000, 1)), None);
        assert_eq!(parking.step_on(0, &why(3, 0x2000, 0)), None);
    }

    #[test]
    fn machines_wait_for_a_debugger_at_their_start_only_if_asked() {
        for (hold, attached) in [(false, false), (true, false), (false, true)] {
            let parking = parking(hold);
            parking.set_attached(attached);
            parking.begin(1);
            assert_eq!(parking.lock().lots[0].hold, hold || attached);
            parking.set_attached(false);
            parking.begin(1);
            assert!(!parking.lock().lots[0].hold);
        }
    }

    #[test]
    fn a_pause_outlives_a_restart() {
        let parking = parking(false);
        parking.begin(1);
        parking.hold();
        parking.leave(0);
        parking.begin(1);
        place(&parking, 0, Place::Parked);
        assert_eq!(parking.news(), Some(News::Stopped(Stop { cpu: 0, why: Why::Asked })));
        assert!(parking.take_asked() && !parking.take_asked());
        parking.hold();
        parking.release(|_| true);
        parking.begin(1);
        assert!(!parking.lock().lots[0].hold);
    }

    #[test]
    fn nobody_answers_who_is_not_parked() {
        let parking = parking(false);
        parking.begin(1);
        assert_eq!(parking.ask(0, |vcpu, _| vcpu.id()), None);
        assert_eq!(parking.ask(7, |vcpu, _| vcpu.id()), None);
    }

    #[test]
    fn questions_that_nobody_answers_do_not_pile_up() {
        let parking = parking(false);
        parking.begin(1);
        let ask = || parking.ask_all(|it| it.vcpu.id()).remove(0);
        let waiting: Vec<_> = (0..QUESTIONS).map(|_| ask().unwrap()).collect();
        assert!(ask().is_none());
        parking.leave(0);
        assert!(waiting.iter().all(|answer| answer.recv().is_err()));
        assert!(ask().is_none());
    }

    #[test]
    fn the_end_is_told_whatever_else_there_is() {
        let parking = parking(true);
        parking.begin(1);
        parking.leave(0);
        assert_eq!(parking.news(), None);
        parking.end(Verdict::from_guest_code(3));
        assert_eq!(parking.news(), Some(News::Ended(Verdict::Failed { code: 3 })));
    }
}
