//! What is still to run, within the memory budget; shared by the threads that lead workers.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::test::Test;

/// A test in the queue.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) test: Arc<Test>,
    /// The test's name, with the round where there are several.
    pub(super) name: String,
    /// How long it will take, as far as anybody knows.
    pub(super) expected: Duration,
}

/// The tests that wait. Every `take` is followed by a `give_back` when the test has ended.
pub(super) struct Queue {
    state: Mutex<State>,
    /// Told when memory comes back, and when there is nothing more to wait for.
    changed: Condvar,
}

struct State {
    waiting: VecDeque<Item>,
    /// The same once more, round by round.
    again: Vec<Item>,
    round: u32,
    /// `None`: for ever.
    rounds: Option<u32>,
    /// Bytes of RAM that are free for machines; less than nothing while one runs that is larger
    /// than the whole budget.
    free: i128,
    running: usize,
    stopped: bool,
}

impl Queue {
    /// Hands out `items` in their order, as `budget` bytes of RAM allow; then the same again, up to
    /// so many `rounds`, or for ever.
    pub(super) fn new(items: Vec<Item>, budget: u64, rounds: Option<u32>) -> Self {
        let again = items.clone();
        let name = |item: Item| match rounds {
            Some(2..) => Item { name: round_name(&item.test.name, 1), ..item },
            _ => item,
        };
        let waiting = items.into_iter().map(name).collect();
        let free = budget.into();
        let state = State { waiting, again, round: 1, rounds, free, running: 0, stopped: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The next test that fits; waits while none does. `None`: there is nothing more to do.
    pub(super) fn take(&self) -> Option<Item> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            state.refill();
            if state.waiting.is_empty() {
                return None;
            }
            if let Some(item) = state.fitting() {
                return Some(item);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next test of the same image, instead of one that has ended: whatever is kept for it
    /// goes on to take its room.
    pub(super) fn take_after(&self, ended: &Item) -> Option<Item> {
        let mut state = self.lock();
        if state.stopped {
            return None;
        }
        state.refill();
        let is_next = |item: &Item| {
            item.test.image_name() == ended.test.image_name()
                && item.test.memory == ended.test.memory
        };
        let at = state.waiting.iter().position(is_next)?;
        state.waiting.remove(at)
    }

    /// Is there nothing more to hand out?
    pub(super) fn is_done(&self) -> bool {
        let mut state = self.lock();
        state.refill();
        state.stopped || state.waiting.is_empty()
    }

    /// A test has ended.
    pub(super) fn give_back(&self, item: &Item) {
        let mut state = self.lock();
        state.running -= 1;
        state.free += i128::from(item.test.memory);
        drop(state);
        self.changed.notify_all();
    }

    /// Hands out nothing more.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// What has not been handed out of this round, and how many there are in those behind it.
    pub(super) fn rest(&self) -> (Vec<Item>, usize) {
        let mut state = self.lock();
        let rounds = state.rounds.map_or(0, |rounds| rounds - state.round) as usize;
        let later = state.again.len().saturating_mul(rounds);
        (std::mem::take(&mut state.waiting).into(), later)
    }

    /// Time that the tests in it will take, one after another.
    pub(super) fn expected(&self) -> Duration {
        let state = self.lock();
        let times = state.waiting.iter().map(|item| item.expected);
        let round = times.fold(Duration::ZERO, Duration::saturating_add);
        let rounds = state.rounds.map_or(0, |rounds| rounds - state.round);
        let whole = state.again.iter().map(|item| item.expected);
        let whole = whole.fold(Duration::ZERO, Duration::saturating_add);
        round.saturating_add(whole.saturating_mul(rounds))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn refill(&mut self) {
        let more = self.rounds.is_none_or(|rounds| self.round < rounds);
        if more && self.waiting.is_empty() && !self.again.is_empty() {
            self.round += 1;
            let round = self.round;
            let next =
                |item: &Item| Item { name: round_name(&item.test.name, round), ..item.clone() };
            self.waiting = self.again.iter().map(next).collect();
        }
    }

    /// The first that fits; one that never will runs alone.
    fn fitting(&mut self) -> Option<Item> {
        let fits = |item: &Item| i128::from(item.test.memory) <= self.free || self.running == 0;
        let at = self.waiting.iter().position(fits)?;
        let item = self.waiting.remove(at)?;
        self.running += 1;
        self.free -= i128::from(item.test.memory);
        Some(item)
    }
}

/// What a test is called in its `round`, counted from 1; 0 is when its image was asked for its tests.
pub(super) fn round_name(name: &str, round: u32) -> String {
    format!("{name} #{round}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(sizes: &[u64]) -> Vec<Item> {
        let item = |memory: &u64| {
            let test = Arc::new(Test::for_tests(&format!("t{memory}"), *memory));
            Item { name: test.name.clone(), test, expected: Duration::from_secs(1) }
        };
        sizes.iter().map(item).collect()
    }

    #[test]
    fn the_budget_is_kept_and_the_next_that_fits_runs() {
        let queue = Queue::new(items(&[60, 50, 40]), 100, Some(1));
        let first = queue.take().unwrap();
        let second = queue.take().unwrap();
        assert_eq!((first.test.memory, second.test.memory), (60, 40));
        queue.give_back(&first);
        assert_eq!(queue.take().unwrap().test.memory, 50);
        assert!(queue.take().is_none());
    }

    #[test]
    fn what_is_larger_than_the_budget_runs_alone() {
        let queue = Queue::new(items(&[1000, 1]), 100, Some(1));
        let large = queue.take().unwrap();
        assert_eq!(large.test.memory, 1000);
        let waits = std::thread::scope(|scope| {
            let next = scope.spawn(|| queue.take().map(|item| item.test.memory));
            std::thread::sleep(Duration::from_millis(20));
            let waits = !next.is_finished();
            queue.give_back(&large);
            assert_eq!(next.join().unwrap(), Some(1));
            waits
        });
        assert!(waits);
    }

    #[test]
    fn an_endless_queue_counts_its_rounds_until_it_is_stopped() {
        let queue = Queue::new(items(&[1, 2]), 100, None);
        let names: Vec<_> = (0..5).map(|_| queue.take().unwrap().name).collect();
        assert_eq!(names, ["t1", "t2", "t1 #2", "t2 #2", "t1 #3"]);
        queue.stop();
        assert!(queue.take().is_none());
        assert_eq!((queue.rest().0.len(), queue.rest().1), (1, 0));
    }

    #[test]
    fn rounds_are_counted_and_not_held_in_memory() {
        let queue = Queue::new(items(&[1, 2]), 100, Some(1_000_000));
        let names: Vec<_> = (0..3).map(|_| queue.take().unwrap().name).collect();
        assert_eq!(names, ["t1 #1", "t2 #1", "t1 #2"]);
        let (rest, later) = queue.rest();
        assert_eq!((rest.len(), later), (1, 2 * 999_998));
        let queue = Queue::new(items(&[1]), 100, Some(2));
        assert!(queue.take().is_some() && queue.take().is_some() && queue.take().is_none());
    }

    #[test]
    fn a_kept_machine_takes_its_room_until_its_image_has_no_more_tests() {
        let item = |name: &str| {
            let mut test = Test::for_tests(name, 60);
            test.member = Some("x".to_owned());
            let (test, name) = (Arc::new(test), name.to_owned());
            Item { test, name, expected: Duration::ZERO }
        };
        let queue = Queue::new(vec![item("a::x"), item("b::x"), item("a::x")], 100, Some(1));
        let first = queue.take().unwrap();
        let second = queue.take_after(&first).unwrap();
        assert_eq!(second.name, "a::x");
        assert!(queue.take_after(&second).is_none() && !queue.is_done());
        queue.give_back(&second);
        assert_eq!(queue.take().unwrap().name, "b::x");
        assert!(queue.is_done());
    }
}
